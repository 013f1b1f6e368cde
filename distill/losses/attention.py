"""Distillation of average attention maps (STaR, Jang et al. 2024, Eq. 1; of the last blocks alone: its baseline)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.batch import Batch, Output, Targets, valid_mask
from distill.config.losses import Attention as Settings
from distill.config.model import Encoder
from distill.losses.term import Losses, LossTerm, Term, TermContext, sum_over_rows


class AttentionKl(LossTerm):
    """KL(teacher || student) of attention maps averaged over heads; per block a mean over frames.

    layer_map: g, student block -> teacher block, counted from 1. Maps are made here, from queries and keys, of ROWS
    queries at a time: memory of all heads is (B, heads, ROWS, T) for each model.
    """

    needs = frozenset({"attention"})

    def __init__(self, layer_map: Mapping[int, int], student: Encoder, teacher: Encoder) -> None:
        super().__init__()
        self.layer_map, self.student, self.teacher = dict(layer_map), student, teacher

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> AttentionKl:
        assert context.teacher is not None
        student, teacher = context.student.encoder, context.teacher.encoder
        return cls(settings.layer_map(student.layers), student, teacher)

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        """One term per student block of the map."""
        assert teacher is not None and teacher.attention is not None and student.attention is not None
        inside = valid_mask(teacher.lengths, student.logits.shape[1])
        terms = {}
        for i, g in self.layer_map.items():
            ours, theirs = student.attention[i].float(), teacher.attention[g].float()
            heads = self.student.widths(i - 1).heads, self.teacher.widths(g - 1).heads
            part = partial(divergence, ours, theirs, *heads, inside)
            terms[f"attention{i}"] = Term(sum_over_rows(part, ours), inside.sum())
        return Losses(terms)


def divergence(ours: Tensor, theirs: Tensor, heads: int, their_heads: int, inside: Tensor, rows: slice) -> Tensor:
    """Of the valid ones of some queries, a sum; pairs as for `average_map`."""
    target = average_map(theirs, their_heads, inside, rows)
    of_rows = F.kl_div(average_map(ours, heads, inside, rows), target, reduction="none", log_target=True).sum(2)
    return torch.where(inside[:, rows], of_rows, 0.0).sum()


def average_map(pairs: Tensor, heads: int, inside: Tensor, rows: slice) -> Tensor:
    """Logarithm of attention averaged over heads, of some queries: (B, T, 2 heads * head_dim) -> (B, rows, T)."""
    queries, keys = (x.unflatten(2, (heads, -1)) for x in pairs.chunk(2, 2))
    scores = torch.einsum("bqhc,bkhc->bhqk", queries[:, rows], keys) / math.sqrt(queries.shape[3])
    scores = scores.masked_fill(~inside[:, None, None], torch.finfo(scores.dtype).min)  # finite: no NaN in the KL
    return scores.log_softmax(3).logsumexp(1) - math.log(heads)
