"""Regression of hidden states by L1 and cosine distance: DistilHuBERT (Chang et al. 2022, Eq. 1), papers/000 L_reg.

DPHuBERT's (Peng et al. 2023, arXiv 2305.17651, Eq. 1) has the cosine itself, and linear layers that blocks share.
Without the cosine, and of a mean of states, it is the loss of LightHuBERT (Wang et al. 2022).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import Batch, Output, Targets, valid_mask
from distill.config.losses import Regression as Settings
from distill.losses.term import Losses, LossTerm, TermContext, masked_mean


class Regression(LossTerm):
    """|p - t| / D - cosine_weight log σ(cos(p, t)), or - cosine_weight cos(p, t), of predicted and teacher's states.

    D: channels. A mean over frames and over predicted blocks, as in DistilHuBERT's code; that counts padded frames too,
    here none counts. Predictions are used in training only: parts of one layer over the last block, or each from its
    own block, with a layer of its own or of its group. A target is a teacher's state, or the mean of several.
    """

    needs = frozenset({"hidden"})

    def __init__(self, settings: Settings, blocks: int, dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.settings, self.pairs = settings, settings.pairs(blocks)
        expanded, count = settings.heads == "last", len(self.pairs)
        self.expansion = nn.Sequential(nn.Linear(dim, dim * count), nn.GELU()) if expanded else None
        self.layer_of = [*range(count)]
        if settings.heads == "groups":
            self.layer_of = [number for number, group in enumerate(settings.groups) for _ in group]
        layers = [nn.Linear(dim, teacher_dim) for _ in set(self.layer_of)]
        if settings.identity:
            for layer in layers:
                nn.init.eye_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.predictions = nn.ModuleList(layers)

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> Regression:
        assert context.teacher is not None
        student = context.student.encoder
        return cls(settings, student.layers, student.dim, context.teacher.encoder.dim)

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        """One term per predicted block, `regression<i>_<g>`, or `regression<i>_mean`."""
        assert teacher is not None
        inside = valid_mask(teacher.lengths, student.logits.shape[1])
        if self.expansion is None:
            states = [student.hidden[i] for i, _ in self.pairs]
        else:
            states = list(self.expansion(student.hidden[-1]).chunk(len(self.pairs), 2))
        terms = {}
        for (i, blocks), number, state in zip(self.pairs, self.layer_of, states):
            target = torch.stack([teacher.hidden[g].float() for g in blocks]).mean(0)
            term = masked_mean(self.distance(self.predictions[number](state).float(), target), inside)
            name = f"regression{i}_{blocks[0] if len(blocks) == 1 else 'mean'}"
            terms[name] = term._replace(weight=1 / len(self.pairs))
        return Losses(terms)

    def distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Of each frame: (B, T, D) twice -> (B, T)."""
        similarity = F.cosine_similarity(ours, theirs, dim=2)
        similarity = similarity if self.settings.cosine == "plain" else F.logsigmoid(similarity)
        return (ours - theirs).abs().mean(2) - self.settings.cosine_weight * similarity
