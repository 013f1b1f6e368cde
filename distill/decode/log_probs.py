"""Log-probabilities of utterances: whole, or chunk by chunk as they stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from distill.batch import Batch
from distill.models.recogniser import Recogniser


@torch.no_grad()
def offline(model: Recogniser, batches: Iterable[Batch]) -> Iterator[tuple[str, np.ndarray]]:
    """The whole-utterance forward (masked, if the model has chunks): pairs of id and (T, V) float32."""
    for batch in batches:
        output = model(batch.wave, batch.samples)
        yield from _by_utterance(batch, output.logits, output.lengths)


@torch.no_grad()
def streaming(model: Recogniser, batches: Iterable[Batch], step_samples: int) -> Iterator[tuple[str, np.ndarray]]:
    """`Recogniser.step` over pieces of `step_samples` as they would arrive: pairs of id and (T, V) float32."""
    for batch in batches:
        state = model.initial_state(len(batch.ids))
        pieces, lengths = [], torch.zeros(len(batch.ids), dtype=torch.int64, device=batch.wave.device)
        size = batch.wave.shape[1]
        for start in range(0, size, step_samples):
            end = min(size, start + step_samples)
            arrived = (batch.samples - start).clamp(0, end - start)
            logits, frames, state = model.step(batch.wave[:, start:end], state, arrived, final=end == size)
            pieces.append(logits)
            lengths += frames
        yield from _by_utterance(batch, torch.cat(pieces, 1), lengths)


def _by_utterance(batch: Batch, logits: torch.Tensor, lengths: torch.Tensor) -> Iterator[tuple[str, np.ndarray]]:
    log_probs = logits.float().log_softmax(-1).cpu().numpy()
    for cut_id, frames, length in zip(batch.ids, log_probs, lengths.tolist()):
        yield cut_id, frames[:length]
