"""The interface through which losses and decoders use a graph engine.

An engine sums the paths of graphs over frame-wise log-probabilities. `score` is all that LF-MMI
needs; its gradient with respect to the log-probabilities is the posterior of each output at each frame.
`lattice` searches a decoding graph for the paths near the best one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from distill.fsa.graph import Hmm
from distill.fsa.lattice import DecodingGraph, Lattice, Search
from distill.search.beam import SearchesLattices

Precision = Literal["input", "float32", "float64"]


class Score(NamedTuple):
    """Result of `Engine.score`.

    total (B,): log of the summed weight of all paths; 0 (without gradient) where there is none.
    valid (B,) bool: False for an utterance without a path.
    recomputed: number of utterances that underflowed in the probability domain and were computed again
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

        log_probs (B, T, V), with the acoustic scale applied; lengths (B,) frames. An utterance without any path gets
        an empty lattice, one whose paths all stop short of a final state gets one that is not `complete`.
        Raises ValueError as `score` does.
        """
        ...


class OwnEngine(SearchesLattices):
    """Options and lattice search that our own implementations share.

    leaky: coefficient of the leaky HMM in shared graphs (`distill.lfmmi.leaky`), 0 for none.
    precision: of the sums, "float32", "float64", or "input" for that of the log-probabilities.
    """

    def __init__(self, leaky: float = 0.0, precision: Precision = "input") -> None:
        if not 0 <= leaky < 1:
            raise ValueError(f"leaky-HMM coefficient must be at least 0 (off) and below 1, got {leaky}")
        if precision not in get_args(Precision):
            raise ValueError(f"precision '{precision}' is not known; expected one of {', '.join(get_args(Precision))}")
        self.leaky, self.precision = leaky, precision

    def converted(self, log_probs: Tensor) -> Tensor:
        """Log-probabilities in the type of the sums; "input" makes float32 of half precision."""
        double = self.precision == "float64" or (self.precision == "input" and log_probs.dtype == torch.float64)
        return log_probs.double() if double else log_probs.float()


class Passes(NamedTuple):
    """Forward-backward outside autograd: total (B,), 0 where not valid; valid (B,); posterior (B, T, V) or None."""

    total: Tensor
    valid: Tensor
    posterior: Tensor | None

    def replace(self, utterances: Tensor, others: Passes) -> None:
        """Overwrite the results of some utterances."""
        for old, new in zip(self, others):
            if old is not None and new is not None:
                old[utterances] = new.to(old.dtype)

    def score(self, log_probs: Tensor, recomputed: int = 0) -> Score:
        """The score as a function of the log-probabilities: its gradient is the posterior."""
        if self.posterior is None:
            return Score(self.total, self.valid, recomputed)
        return Score(_WithGradient.apply(log_probs, self.total, self.posterior), self.valid, recomputed)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, total: Tensor, posterior: Tensor) -> Tensor:
        ctx.save_for_backward(posterior)
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (posterior,) = ctx.saved_tensors
        return posterior * gradients[0][:, None, None], None, None


def needs_gradient(log_probs: Tensor) -> bool:
    return log_probs.requires_grad and torch.is_grad_enabled()


def posteriors(engine: Engine, log_probs: Tensor, lengths: Tensor, graph: Hmm) -> Tensor:
    """Posterior probability of each output at each frame under `graph`.

    log_probs (B, T, V), lengths (B,) -> (B, T, V), summing to one over V in every valid frame.
    """
    with torch.enable_grad():
        leaf = log_probs.detach().requires_grad_()
        total = engine.score(leaf, lengths, graph).total.sum()
        return torch.autograd.grad(total, leaf)[0]
