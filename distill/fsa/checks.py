"""Checks of an engine's input: shapes, lengths, values, graphs with initial and final states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.fsa.graph import Hmm

NOT_FINITE = (
    "log_probs contain NaN or +inf: the model diverged (go back a checkpoint, lower the learning rate or the clipping)"
    " or its input was not finite"
)


def check_inputs(
    log_probs: Tensor, lengths: Tensor, graph: Hmm | Sequence[Hmm] | None = None, values: bool = True
) -> None:
    """Raise ValueError for input that no engine can score.

    graph: shared by the batch, or one per utterance; None where a decoding graph is searched. values: check each
    log-probability too.
    """
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
    shared, graphs = (True, [graph]) if isinstance(graph, Hmm) else (False, graph or ())
    if graph is not None and not shared and len(graphs) != batch:
        raise ValueError(f"got {len(graphs)} graphs for a batch of {batch}: one per utterance is needed")
    if batch and int(lengths.min()) < 0:
        raise ValueError(f"lengths go down to {int(lengths.min())}: an utterance has no fewer than 0 frames")
    if values and not (log_probs < torch.inf).all():
        raise ValueError(NOT_FINITE)
    if isinstance(graph, Hmm) and not all((end > -torch.inf).any() for end in (graph.initial, graph.final)):
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
