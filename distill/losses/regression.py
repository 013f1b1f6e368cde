"""Regression of hidden states by L1 and cosine distance: DistilHuBERT (Chang et al. 2022, Eq. 1), papers/000 L_reg.

Without the cosine, and of a mean of states, it is the loss of LightHuBERT (Wang et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import Batch, Output, Targets, valid_mask
from distill.config.losses import Regression as Settings
from distill.losses.term import Losses, LossTerm, TermContext, masked_mean


class Regression(LossTerm):
    """|p - t| / D - cosine_weight log σ(cos(p, t)) of a predicted state p and a teacher's t, of D channels.

    A mean over frames and over predicted blocks, as in DistilHuBERT's code; that counts padded frames too, here none
    counts. pairs: student block i, teacher blocks whose mean is t. expanded: all predictions come from one layer over
    the last block, of a part for each, else each from its own block. Either way they are used in training only.
    """

    needs = frozenset({"hidden"})

    def __init__(
        self, pairs: Sequence[tuple[int, Sequence[int]]], dim: int, teacher_dim: int, expanded: bool,
        cosine_weight: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pairs, self.cosine_weight = tuple(pairs), cosine_weight
        self.expansion = nn.Sequential(nn.Linear(dim, dim * len(pairs)), nn.GELU()) if expanded else None
        self.predictions = nn.ModuleList(nn.Linear(dim, teacher_dim) for _ in pairs)

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> Regression:
        assert context.teacher is not None
        student, teacher_dim = context.student.encoder, context.teacher.encoder.dim
        pairs: dict[str, list[tuple[int, Sequence[int]]]] = {
            "last": [(student.layers, [g]) for g in settings.blocks],
            "mean": [(student.layers, settings.blocks)],
            "layers": [(i, [g]) for i, g in settings.layer_map(student.layers).items()],
        }
        expanded = settings.heads == "last"
        return cls(pairs[settings.heads], student.dim, teacher_dim, expanded, settings.cosine_weight)

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        """One term per predicted block, `regression<i>_<g>`, or `regression<i>_mean`."""
        assert teacher is not None
        inside = valid_mask(teacher.lengths, student.logits.shape[1])
        if self.expansion is None:
            states = [student.hidden[i] for i, _ in self.pairs]
        else:
            states = list(self.expansion(student.hidden[-1]).chunk(len(self.pairs), 2))
        terms = {}
        for (i, blocks), layer, state in zip(self.pairs, self.predictions, states):
            target = torch.stack([teacher.hidden[g].float() for g in blocks]).mean(0)
            term = masked_mean(self.distance(layer(state).float(), target), inside)
            name = f"regression{i}_{blocks[0] if len(blocks) == 1 else 'mean'}"
            terms[name] = term._replace(weight=1 / len(self.pairs))
        return Losses(terms)

    def distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Of each frame: (B, T, D) twice -> (B, T)."""
        similarity = F.cosine_similarity(ours, theirs, dim=2)
        return (ours - theirs).abs().mean(2) - self.cosine_weight * F.logsigmoid(similarity)
