"""How far distortions move representations of speech (papers/003 §6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from sklearn.manifold import TSNE

from distill.batch import Batch, mean_over_frames
from distill.models.recogniser import Recogniser


@torch.no_grad()
def mean_states(models: Mapping[str, Recogniser], batches: Iterable[Batch], parts: int) -> dict[str, np.ndarray]:
    """Last hidden states of each model, a mean over frames and then over the utterances of each part: (parts, C).

    Parts are of utterances in the order of their names, so that those of other versions of the same ones fit. Models
    are in evaluation mode. Raises ValueError for fewer utterances than parts.
    """
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in models}
    for batch in batches:
        for name, model in models.items():
            output = model(batch.wave, batch.samples)
            means = mean_over_frames(output.hidden[-1].float(), output.lengths)
            found[name] |= dict(zip(batch.ids, means.double().cpu().numpy()))
    count = min(map(len, found.values()))
    if count < parts:
        raise ValueError(f"{count} utterances are fewer than {parts} parts; give fewer parts, or a larger cut set")
    return {name: _by_part(own, parts) for name, own in found.items()}


def _by_part(means: Mapping[str, np.ndarray], parts: int) -> np.ndarray:
    every = np.stack([means[utterance] for utterance in sorted(means)])
    return np.stack([part.mean(0) for part in np.array_split(every, parts)])


def embedded(versions: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """t-SNE of all versions together: (N, C) each -> (N, 2) each."""
    points = np.concatenate(list(versions.values()))
    points = TSNE(perplexity=min(30.0, (len(points) - 1) / 3), init="pca", random_state=seed).fit_transform(points)
    return dict(zip(versions, np.split(points, np.cumsum([len(x) for x in versions.values()])[:-1])))


def distances(versions: Mapping[str, np.ndarray], clean: str) -> dict[str, tuple[float, float]]:
    """Of each version (N, C) from the clean one: between centroids, and a mean between rows of the same part.

    In units of the clean one's spread, the root mean square of its rows' distances from their centroid.
    """
    plain = versions[clean]
    spread = np.sqrt(np.square(plain - plain.mean(0)).sum(1).mean()) + 1e-12

    def between(x: np.ndarray) -> tuple[float, float]:
        centroids, rows = np.linalg.norm(x.mean(0) - plain.mean(0)), np.linalg.norm(x - plain, axis=1).mean()
        return float(centroids / spread), float(rows / spread)

    return {name: between(x) for name, x in versions.items()}
