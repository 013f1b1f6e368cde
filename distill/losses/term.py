"""Terms of the objective: a loss as a sum and its count, kept apart until they are summed over ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distill.batch import Batch, Output, Targets, valid_mask
from distill.config.model import Model
from distill.fsa.graph import Hmm
from distill.models.groups import ParameterGroup
from distill.precision import without_autocast

NEEDS = {
    "graphs": "the batch's numerators and the denominator",
    "hidden": "hidden states of the teacher's blocks",
    "outputs": "the teacher's logits",
    "attention": "queries and keys of student and teacher blocks",
    "features": "normed frames of the teacher's front-end",
    "codes": "the teacher's logits over its codewords",
    "units": "the batch's k-means labels",
    "masks": "the student's input masked, in validation too",
    "clean": "waveforms before augmentation",
    "distortions": "labels of the distortions of the student's input",
    "tokens": "units of the batch's transcripts",
    "joint": "the teacher's transducer",
}
"""What training provides for terms (`distill.train.setup`)."""
ROWS = 128
"""Frames whose relations to all frames are in memory at a time."""


class Term(NamedTuple):
    """total: scalar to minimise, summed over what `count` (scalar) counts. weight: its factor in the loss."""

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, of which a term has no use
    weight: float = 1.0


class Losses(NamedTuple):
    """Named terms; dropped (B,): utterances without a path; recomputed: how many were done in the log semiring."""

    terms: dict[str, Term]
    dropped: Tensor | bool = False
    recomputed: int = 0


@dataclass(frozen=True)
class TermContext:
    """Sources of a term besides its settings: student, teacher, and for LF-MMI an engine's name and the denominator.

    clusters: number of k-means units, or of the teacher's codewords. distortions: labels of each utterance.
    """

    student: Model
    teacher: Model | None = None
    engine: str = ""
    denominator: Hmm | None = None
    clusters: int = 0
    distortions: int = 0


class LossTerm(nn.Module):
    """Base of the terms in `distill.losses.objective.TERMS`.

    needs: inputs beside the student's output, of NEEDS. group: of its parameters in the optimiser, None for the
    model's. update_number: of the training's current update.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    group: ParameterGroup | None = None
    update_number: int = 0

    def __init_subclass__(cls) -> None:
        """Raises ValueError for a class with an unknown name in `needs`."""
        if unknown := sorted(cls.needs - NEEDS.keys()):
            raise ValueError(f"{cls.__name__}.needs: unknown {', '.join(unknown)}; there are: {', '.join(NEEDS)}")

    @classmethod
    def build(cls, settings: Any, context: TermContext) -> LossTerm:
        """From the term's settings; raises ValueError where they do not fit student, teacher or engine."""
        raise NotImplementedError

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        """teacher: at the student's frames, `lengths` those valid in both; None where the term needs no teacher."""
        raise NotImplementedError


def feature_penalty(student: Output, weight: float) -> Term:
    """Mean square of the front-end's output over valid frames, times a weight: keeps its scale in bounds (fairseq)."""
    assert student.features is not None
    inside = valid_mask(student.lengths, student.features.shape[1])
    squares = student.features.float().square().mean(2)
    return Term(torch.where(inside, squares, 0.0).sum(), inside.sum(), weight)


def masked_mse(ours: Tensor, theirs: Tensor, inside: Tensor) -> Term:
    """Mean squared error over valid frames and dimensions: (B, T, D) twice, inside (B, T) bool."""
    return masked_mean((ours.float() - theirs.float()).square().sum(2), inside, ours.shape[2])


def masked_mean(error: Tensor, inside: Tensor, parts: int = 1) -> Term:
    """Mean over valid frames of error (B, T), each a sum of so many parts; inside (B, T) bool."""
    return Term(torch.where(inside, error, error.new_zeros(())).sum(), inside.sum() * parts)


def sum_over_rows(part: Callable[[slice], Tensor], like: Tensor) -> Tensor:
    """Sum of part(rows) over slices of ROWS of the frames of `like` (B, T, C), in single precision.

    The backward pass computes each part again, so that of relations between frames (B, T, T) only (B, ROWS, T) is in
    memory.
    """
    slices = (slice(start, start + ROWS) for start in range(0, like.shape[1], ROWS))
    with without_autocast(like):
        parts = [checkpoint(part, rows, use_reentrant=False, preserve_rng_state=False) for rows in slices]
    return torch.stack(parts).sum()
