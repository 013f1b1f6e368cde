"""Logits over codewords: as HuBERT predicts its units, or by distance to k-means centroids; codewords in use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CodeHead(nn.Module):
    """Cosine of projected hidden states to an embedding per codeword, over a temperature (Hsu et al. 2021, Eq. 3)."""

    def __init__(self, dim: int, final_dim: int, clusters: int, temperature: float = 0.1, block: int = -1) -> None:
        """block: whose output it takes, numbered as in `distill.batch.Output.hidden`."""
        super().__init__()
        self.projection = nn.Linear(dim, final_dim)
        self.codewords = nn.Parameter(torch.empty(clusters, final_dim).uniform_())
        self.clusters, self.temperature, self.block = clusters, temperature, block

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (..., C) -> logits (..., K)."""
        projected = F.normalize(self.projection(hidden).float(), dim=-1)
        return F.linear(projected, F.normalize(self.codewords, dim=-1)) / self.temperature


class CentroidCodes(nn.Module):
    """Codewords of a model without a `CodeHead`: k-means centroids c_k (K, C) of the hidden states of one block.

    Logits are -|h - c_k|² / (temperature S), S the mean squared distance between two centroids, so that the unit of h
    cancels out. For centroids of length 1 around 0, and h of length 1, they are CodeHead's, up to a constant.
    """

    centroids: Tensor

    def __init__(self, centroids: Tensor, block: int, temperature: float = 0.1) -> None:
        """block: numbered as in `distill.batch.Output.hidden`."""
        super().__init__()
        self.register_buffer("centroids", centroids.float())
        self.clusters, self.block, self.temperature = len(centroids), block, temperature

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (B, T, C) -> logits (B, T, K)."""
        spread = 2 * self.centroids.var(0, correction=0).sum()
        return -torch.cdist(hidden.float(), self.centroids).square() / (self.temperature * spread)


def perplexity(shares: Tensor) -> Tensor:
    """Codewords in use, exp of the entropy: shares (..., K) of all frames -> (...)."""
    return (-(shares * (shares + 1e-7).log()).sum(-1)).exp()
