"""Checks of what is scored: shapes, lengths, graphs that can begin and end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.fsa.graph import Hmm

NOT_FINITE = (
    "log_probs contain NaN or +inf: the model diverged (go back a checkpoint, lower the learning rate or the clipping)"
    " or its input was not finite"
)


def check_inputs(log_probs: Tensor, lengths: Tensor, graphs: Sequence[Hmm], shared: bool, values: bool = True) -> None:
    """Raise ValueError for input that no engine can score; values: look at each log-probability too."""
    if log_probs.ndim != 3:
        raise ValueError(f"log_probs must be (B, T, V), got {tuple(log_probs.shape)}")
    batch, frames, outputs = log_probs.shape
    if lengths.shape != (batch,):
        raise ValueError(f"lengths must be ({batch},), got {tuple(lengths.shape)}")
    if batch and int(lengths.max()) > frames:
        raise ValueError(
            f"lengths go up to {int(lengths.max())}, but log_probs has {frames} frames (T); they count the model's"
            " frames, not samples or frames of its input"
        )
    if not shared and len(graphs) != batch:
        raise ValueError(f"got {len(graphs)} graphs for a batch of {batch}: one per utterance is needed")
    if batch and int(lengths.min()) < 0:
        raise ValueError(f"lengths go down to {int(lengths.min())}: an utterance has no fewer than 0 frames")
    if values and not (log_probs < torch.inf).all():
        raise ValueError(NOT_FINITE)
    if shared and not all(map(_can_begin_and_end, graphs)):
        raise ValueError(
            "the graph has no final or no initial state: no path can end, so every score would be -inf; give a state"
            " a final weight (0 is certain), or make the graph again (run.sh --stage 4)"
        )
    top = max((int(graph.label.max()) for graph in graphs if graph.num_states), default=0)
    if top >= outputs:
        raise ValueError(
            f"a graph uses output {top}, but log_probs has only {outputs} outputs (V), 0 to {outputs - 1}; model and"
            " graph must come from the same lang folder"
        )


def _can_begin_and_end(graph: Hmm) -> bool:
    return bool((graph.final > -torch.inf).any()) and bool((graph.initial > -torch.inf).any())
