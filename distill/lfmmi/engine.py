"""The interface through which losses and decoders use a graph engine.

An engine sums the paths of graphs over frame-wise log-probabilities. `score` is all that LF-MMI
needs; its gradient with respect to the log-probabilities is the posterior of each output at each frame.
`lattice` searches a decoding graph for the paths near the best one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from distill.fsa.graph import Hmm
from distill.fsa.lattice import DecodingGraph, Lattice, Search

Precision = Literal["input", "float32", "float64"]


class Score(NamedTuple):
    """What `Engine.score` returns.

    total (B,): log of the summed weight of all paths; 0 (without gradient) where there is none.
    valid (B,) bool: whether the utterance has a path at all.
    recomputed: how many utterances underflowed in the probability domain and were done again
        in the log semiring.
    """

    total: Tensor
    valid: Tensor
    recomputed: int = 0


class Engine(Protocol):
    """Forward-backward over graphs; implementations differ in speed, never in values."""

    def score(self, log_probs: Tensor, lengths: Tensor, graph: Hmm | Sequence[Hmm]) -> Score:
        """Sum all paths of `graph` over the frames of each utterance.

        log_probs (B, T, V), lengths (B,) frames. `graph` is one graph shared by the batch (the
        denominator) or one graph per utterance (numerators). Raises ValueError on wrong shapes,
        NaN or +inf log-probabilities, lengths beyond T, labels outside V or a shared graph without final states;
        an utterance whose own graph has no path is masked.
        """
        ...

    def lattice(self, log_probs: Tensor, lengths: Tensor, graph: DecodingGraph, search: Search) -> list[Lattice]:
        """The paths of a decoding graph near the best one, one lattice per utterance.

        log_probs (B, T, V), scaled as they shall count against the graph; lengths (B,) frames. An utterance without
        any path gets an empty lattice, one whose paths all stop short of a final state one that is not
        `complete`. Raises ValueError as `score` does.
        """
        ...


def check_options(leaky: float, precision: str) -> None:
    """Raise ValueError for options that no engine has."""
    if not 0 <= leaky < 1:
        raise ValueError(f"leaky-HMM coefficient must be at least 0 (off) and below 1, got {leaky}")
    if precision not in get_args(Precision):
        raise ValueError(f"precision '{precision}' is not known; expected one of {', '.join(get_args(Precision))}")


def in_precision(log_probs: Tensor, precision: Precision) -> Tensor:
    """Log-probabilities in the type that sums are made in; "input" makes float32 of halves."""
    if precision == "input":
        return log_probs if log_probs.dtype == torch.float64 else log_probs.float()
    return log_probs.double() if precision == "float64" else log_probs.float()


def posteriors(engine: Engine, log_probs: Tensor, lengths: Tensor, graph: Hmm) -> Tensor:
    """Posterior probability of each output at each frame under `graph`.

    log_probs (B, T, V), lengths (B,) -> (B, T, V), summing to one over V in every valid frame.
    """
    with torch.enable_grad():
        leaf = log_probs.detach().requires_grad_()
        total = engine.score(leaf, lengths, graph).total.sum()
        return torch.autograd.grad(total, leaf)[0]
