"""Distillation of temporal relations by Gram matrices over time (STaR, Jang et al. 2024, Eq. 3-6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.batch import Batch, Output, Targets, valid_mask
from distill.config.losses import Temporal as Settings
from distill.losses.term import Losses, LossTerm, Term, TermContext, sum_over_rows


class TemporalGram(LossTerm):
    """Mean over pairs of frames of (G_S - G_T)², without parameters: G = X Yᵀ (B, T, T) needs no common width.

    layer_map: g, student block -> teacher block, counted from 1. Of kind "layer" X = Y is the output of a block, or the
    input of the first one, which is taken behind positions and norm, before dropout; of kind "intra" X is the input and
    Y the output of a block. norm: of products over channels, "none", "dim" (their mean) or "cosine". The paper leaves
    norm, masks and means open: none of padding counts here. Of G (B, ROWS, T) is in memory.
    """

    needs = frozenset({"hidden"})

    def __init__(self, layer_map: Mapping[int, int], kinds: Sequence[str], norm: str) -> None:
        super().__init__()
        self.norm, self.pairs = norm, dict[str, tuple[tuple[int, int], tuple[int, int]]]()
        for kind in kinds:
            for i, g in ({0: 0} | dict(layer_map) if kind == "layer" else layer_map).items():
                before = kind == "intra"
                self.pairs[f"{kind}{i}"] = (i - before, i), (g - before, g)

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> TemporalGram:
        return cls(settings.layer_map(context.student.encoder.layers), settings.kinds, settings.norm)

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        """One term per kind and student block, `layer<i>` and `intra<i>`."""
        assert teacher is not None
        inside = valid_mask(teacher.lengths, student.logits.shape[1])
        ours = {i: self.scaled(student.hidden[i], inside) for i in self.blocks(0)}
        theirs = {g: self.scaled(teacher.hidden[g], inside) for g in self.blocks(1)}
        count, terms = inside.sum(1).square().sum(), {}
        for name, ((x, y), (v, w)) in self.pairs.items():
            part = partial(gram_error, ours[x], ours[y], theirs[v], theirs[w])
            terms[name] = Term(sum_over_rows(part, ours[x]), count)
        return Losses(terms)

    def blocks(self, side: int) -> set[int]:
        """Blocks of the student (0) or teacher (1) that any term reads."""
        return {block for pair in self.pairs.values() for block in pair[side]}

    def scaled(self, x: Tensor, inside: Tensor) -> Tensor:
        """States (B, T, C) whose products are normed; zero in padding."""
        x = torch.where(inside[..., None], x.float(), 0.0)
        if self.norm == "cosine":
            return F.normalize(x, dim=2)
        return x / x.shape[2] ** 0.5 if self.norm == "dim" else x


def gram_error(x: Tensor, y: Tensor, v: Tensor, w: Tensor, rows: slice) -> Tensor:
    """Sum of (X Yᵀ - V Wᵀ)² over some rows of all utterances; x, y (B, T, C), v, w (B, T, D)."""
    error = torch.bmm(x[:, rows], y.transpose(1, 2)) - torch.bmm(v[:, rows], w.transpose(1, 2))
    return error.square().sum()
