"""A term of the objective: a sum and the count it is divided by, kept apart until all ranks have met."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Term(NamedTuple):
    """total: scalar to minimise, summed over what `count` (scalar) counts. weight: its factor in the loss."""

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody asks a term for
    weight: float = 1.0

    def weighted(self, weight: float) -> Term:
        """The same term with its weight multiplied."""
        return self._replace(weight=self.weight * weight)


def masked_mse(ours: Tensor, theirs: Tensor, inside: Tensor) -> Term:
    """Mean squared error over valid frames and dimensions: (B, T, D) twice, inside (B, T) bool."""
    error = (ours.float() - theirs.float()).square().sum(2)
    total = torch.where(inside, error, error.new_zeros(())).sum()
    return Term(total, inside.sum() * ours.shape[2])
