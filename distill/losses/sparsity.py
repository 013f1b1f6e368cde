"""Pruning by gates, to a target (papers/002; Wang et al. 2020, arXiv 1910.04732, §3.3; DPHuBERT)."""

from __future__ import annotations

import torch
from torch import nn

from distill.batch import Batch, Output, Targets
from distill.config.losses import Sparsity as Settings
from distill.losses.term import Losses, LossTerm, ParameterGroup, Term, TermContext
from distill.models.recogniser import without_values


class Sparsity(LossTerm):
    """λ1 (s - t) + λ2 (s - t)² of the expected sparsity s and a target t that rises linearly; λ1, λ2 go up from 0."""

    def __init__(self, target: float, warm_up: int, lr_scale: float) -> None:
        super().__init__()
        self.target, self.warm_up = target, warm_up
        self.multipliers = nn.Parameter(torch.zeros(2))
        self.group = ParameterGroup("sparsity", lr_scale, ascent=True, decays=False)

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> Sparsity:
        without_values(context.student).gates.check_reach(settings.target, "objective.sparsity.target")
        pruning = context.student.pruning
        assert pruning is not None
        return cls(settings.target, settings.warm_up, pruning.lr_scale)

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        """Terms: sparsity_penalty, in training alone part of the loss; as a figure the sparsity that is reached."""
        assert student.sparsity is not None
        one = torch.ones((), device=student.sparsity.device)
        distance = student.sparsity - self.target_now
        penalty = (self.multipliers * torch.stack([distance, distance.square()])).sum()  # a product would be autocast
        return Losses(
            {
                "sparsity_penalty": Term(penalty, one, float(self.training)),
                "sparsity": Term(student.sparsity, one, 0.0),
            }
        )

    @property
    def target_now(self) -> float:
        """t of this update."""
        return self.target * min(1.0, self.update_number / self.warm_up) if self.warm_up else self.target
