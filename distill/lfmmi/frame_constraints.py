"""Per-frame constraints (Kaldi's time enforcer) and frame weights (deriv_weights) of numerator graphs.

Both act on the log-probabilities, so they are the same for all engines.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.fsa.graph import Hmm, Numerator


def within_windows(log_probs: Tensor, graphs: Sequence[Hmm]) -> Tensor:
    """Log-probabilities (B, T, V), -inf for outputs outside the windows of all states that have them.

    Kaldi's time enforcer (Povey et al. 2016, section 2.2). Utterances whose graphs have no windows are unchanged.
    """
    windows = [graph.window if isinstance(graph, Numerator) else None for graph in graphs]
    if all(window is None for window in windows):
        return log_probs
    allowed = torch.ones(log_probs.shape, dtype=torch.bool)
    for row, (graph, window) in enumerate(zip(graphs, windows)):
        if window is not None:
            allowed[row] = _allowed(graph.label, window, *log_probs.shape[1:])
    return log_probs.masked_fill(~allowed.to(log_probs.device), -torch.inf)


def _allowed(label: Tensor, window: Tensor, frames: int, outputs: int) -> Tensor:
    """(T, V) bool: each window is a step up at its begin and a step down after its end."""
    steps = torch.zeros((frames + 1, outputs), dtype=torch.int64)
    used = window[:, 0] <= window[:, 1]
    label, begin, end = label[used], window[used, 0].clamp(0, frames), (window[used, 1] + 1).clamp(0, frames)
    one = torch.ones_like(label)
    steps.index_put_((begin, label), one, accumulate=True)
    steps.index_put_((end, label), -one, accumulate=True)
    return steps.cumsum(0)[:frames] > 0


def weighted(log_probs: Tensor, graphs: Sequence[Hmm]) -> Tensor:
    """The same values (B, T, V), with the gradient of each frame times its confidence (Kaldi's deriv_weights)."""
    confidences = [graph.confidence if isinstance(graph, Numerator) else None for graph in graphs]
    if all(confidence is None for confidence in confidences):
        return log_probs
    weight = torch.ones(log_probs.shape[:2])
    for row, confidence in zip(weight, confidences):
        if confidence is not None:
            count = min(len(confidence), len(row))
            row[:count] = confidence[:count]
    # the values must stay the same even where they are -inf, so nothing is added to them
    return _ScaledGradient.apply(log_probs, weight.to(log_probs)[..., None])


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return values.view_as(values)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return gradients[0] * weight, None
