"""What every model that streams is held to."""

from __future__ import annotations

import itertools

import torch

from distill.models.recogniser import Recogniser


def assert_step_equals_forward(model: Recogniser, lengths: list[int], cuts: list[int]) -> None:
    """`step` over the pieces between cuts gives the frames and logits of the masked forward."""
    generator = torch.Generator().manual_seed(sum(lengths))
    wave = torch.nn.utils.rnn.pad_sequence([torch.randn(n, generator=generator) for n in lengths], batch_first=True)
    samples, size = torch.tensor(lengths), max(lengths)
    with torch.no_grad():
        whole = model(wave, samples)
        edges = sorted({0, size, *(min(cut, size) for cut in cuts)})
        state, pieces, frames = model.initial_state(len(lengths)), [], torch.zeros(len(lengths), dtype=torch.int64)
        for start, end in itertools.pairwise(edges):
            arrived = (samples - start).clamp(0, end - start)
            logits, valid, state = model.step(wave[:, start:end], state, arrived, final=end == size)
            pieces.append(logits)
            frames += valid
    assert frames.tolist() == whole.lengths.tolist()
    streamed = torch.cat(pieces, 1)
    for b, length in enumerate(whole.lengths.tolist()):
        torch.testing.assert_close(streamed[b, :length], whole.logits[b, :length], rtol=1e-4, atol=1e-4)
