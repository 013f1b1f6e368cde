"""Hidden-layer distillation, papers/001 Eq. 2: sum over i of MSE(H_i^S W_i, H_g(i)^T)."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import nn

from distill.batch import Batch, Output, Targets, valid_mask
from distill.config.losses import Hidden as Settings
from distill.losses.term import Losses, LossTerm, ParameterGroup, TermContext, masked_mse


class HiddenMse(LossTerm):
    """Trainable W_i map student blocks to teacher blocks; the last one may belong to a shared head.

    layer_map: g, student block -> teacher block, counted from 1. last: the teacher's last block. shared: the head's own
    projection (`Output.mapped_last`) takes the place of its W_i. norm: "none" or "layer", of the targets. lower_weight:
    of blocks before the last one of the map.
    """

    needs = frozenset({"hidden"})

    def __init__(
        self, layer_map: Mapping[int, int], student_dim: int, teacher_dim: int, last: int, shared: bool, norm: str,
        lower_weight: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.lower_weight = lower_weight
        self.layer_map, self.last, self.shared, self.norm = dict(layer_map), last, shared, norm
        own = [i for i, g in layer_map.items() if not (shared and g == last)]
        self.projections = nn.ModuleDict({str(i): nn.Linear(student_dim, teacher_dim, bias=False) for i in own})

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> HiddenMse:
        assert context.teacher is not None
        student, teacher = context.student.encoder, context.teacher.encoder
        layer_map = settings.layer_map(student.layers)
        # A shared head's prediction layer is the teacher's, so that its W must map to the teacher's last block.
        same_width = context.student.shared_head_dim == teacher.dim
        shared = same_width and layer_map.get(student.layers) == teacher.layers
        term = cls(layer_map, student.dim, teacher.dim, teacher.layers, shared, settings.norm, settings.lower_weight)
        if settings.lr_scale != 1:
            term.group = ParameterGroup("hidden", settings.lr_scale)
        return term

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        """One term per student block of the map."""
        assert teacher is not None
        inside = valid_mask(teacher.lengths, student.logits.shape[1])
        terms = {}
        for i, g in self.layer_map.items():
            mapped = student.mapped_last if self.shared and g == self.last else None
            if mapped is None:
                mapped = self.projections[str(i)](student.hidden[i])
            target = teacher.hidden[g]
            # The last target is normed already where blocks are pre-LN, and is the input of the shared head.
            if self.norm == "layer" and g != self.last:
                target = F.layer_norm(target.float(), target.shape[-1:])
            weight = 1.0 if i == max(self.layer_map) else self.lower_weight
            terms[f"hidden{i}"] = masked_mse(mapped, target, inside)._replace(weight=weight)
        return Losses(terms)
