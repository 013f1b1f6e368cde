"""Hidden states of two models at the same frames."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from distill.batch import Batch, Targets
from distill.config.model import frame_ratio
from distill.losses.objective import fit_frames
from distill.models.recogniser import Recogniser

States = list[np.ndarray]


@torch.no_grad()
def paired_states(
    first: Recogniser, second: Recogniser, batches: Iterable[Batch], frames: int, seed: int = 0
) -> tuple[States, States]:
    """States (N, C) of every block, the input of the first one included, of some random frames of each utterance.

    frames: at most so many of an utterance. Models are in evaluation mode; the frames are those of `second`, whose hop
    is that of `first` or a multiple of it: else raises ValueError.
    """
    draw = np.random.default_rng(seed)
    found: tuple[list[list[np.ndarray]], ...] = tuple(
        [[] for _ in range(1 + m.settings.encoder.layers)] for m in (first, second)
    )
    ratio = frame_ratio(second.settings, first.settings)
    for batch in batches:
        theirs, ours = (model(batch.wave, batch.samples) for model in (first, second))
        targets = Targets(theirs.logits, dict(enumerate(theirs.hidden)), theirs.lengths)
        fitted = fit_frames(targets, ratio, ours.lengths, ours.logits.shape[1])
        for row, length in enumerate(fitted.lengths.tolist()):
            chosen = np.sort(draw.permutation(length)[:frames])
            for kept, hidden in zip(found, (fitted.hidden.values(), ours.hidden)):
                for block, x in zip(kept, hidden):
                    block.append(x[row].cpu().numpy()[chosen])
    return tuple([np.concatenate(block).astype(np.float64) for block in kept] for kept in found)  # type: ignore[return-value]
