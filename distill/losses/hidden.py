"""Hidden-layer distillation, papers/001 Eq. 2: sum over i of MSE(H_i^S W_i, H_g(i)^T)."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import Output, Targets, valid_mask
from distill.losses.term import Term, masked_mse


class HiddenMse(nn.Module):
    """Trainable W_i map student blocks to teacher blocks; the last one may belong to a shared head.

    layer_map: g, student block -> teacher block, counted from 1. shared: the head's own projection,
    used for the last student block instead of a new W_i.
    """

    def __init__(
        self, layer_map: Mapping[int, int], student_dim: int, teacher_dim: int, last: int, shared: bool, norm: str
    ) -> None:
        super().__init__()
        self.layer_map, self.last, self.norm = dict(layer_map), last, norm
        self.shared = shared
        own = [i for i in layer_map if not (shared and i == last)]
        self.projections = nn.ModuleDict({str(i): nn.Linear(student_dim, teacher_dim, bias=False) for i in own})

    def forward(self, student: Output, teacher: Targets, lengths: Tensor) -> dict[str, Term]:
        """lengths (B,): frames valid in both; raises ValueError for a head that is not shared where it should be."""
        inside = valid_mask(lengths, student.logits.shape[1])
        terms = {}
        for i, g in self.layer_map.items():
            mapped = student.mapped_last if self.shared and i == self.last else None
            if mapped is None:
                mapped = self.projections[str(i)](student.hidden[i])
            terms[f"hidden{i}"] = masked_mse(mapped, self._target(teacher.hidden[g], i), inside)
        return terms

    def _target(self, target: Tensor, i: int) -> Tensor:
        # The last target is normed already where blocks are pre-LN, and is what the shared head reads.
        if self.norm == "none" or i == self.last:
            return target
        return F.layer_norm(target.float(), target.shape[-1:])
