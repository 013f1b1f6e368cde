"""Logits over codewords, as HuBERT predicts its units."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CodeHead(nn.Module):
    """Cosine of projected hidden states to an embedding per codeword, over a temperature (Hsu et al. 2021, Eq. 3)."""

    def __init__(self, dim: int, final_dim: int, clusters: int, temperature: float = 0.1) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, final_dim)
        self.codewords = nn.Parameter(torch.empty(clusters, final_dim).uniform_())
        self.temperature = temperature

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (..., C) -> logits (..., K)."""
        projected = F.normalize(self.projection(hidden).float(), dim=-1)
        return F.linear(projected, F.normalize(self.codewords, dim=-1)) / self.temperature
