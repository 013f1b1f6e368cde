"""The network of a Transformer language model: a decoder with pre-LN blocks and tied embeddings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.config.language_model import Model
from distill.config.model import Encoder
from distill.models.attention import Context
from distill.models.encoder import TransformerBlock

LONGEST_WAVE = 10_000.0  # of the positions


class TransformerLm(nn.Module):
    """Predicts each unit from those before it (Vaswani et al. 2017, decoder only; tied as Press and Wolf 2017)."""

    def __init__(self, settings: Model, units: int) -> None:
        super().__init__()
        self.settings = settings
        self.embedding = nn.Embedding(units, settings.dim)
        block = Encoder(
            dim=settings.dim, ffn_dim=settings.ffn_dim, heads=settings.heads, norm_first=True, position_groups=1,
            dropout=settings.dropout,
        )  # fmt: skip
        self.blocks = nn.ModuleList(TransformerBlock(block) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.dim)
        self.dropout = nn.Dropout(settings.dropout)
        nn.init.normal_(self.embedding.weight, std=settings.dim**-0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        """Token ids (B, T) -> logits (B, T, V) of each next token; causal, so padding changes nothing before it."""
        size = inputs.shape[1]
        x = self.embedding(inputs) * math.sqrt(self.settings.dim)
        x = self.dropout(x + positions(size, self.settings.dim, x))
        context = Context(torch.ones(size, size, dtype=torch.bool, device=inputs.device).tril())
        for block in self.blocks:
            x, _ = block(x, context)
        return F.linear(self.norm(x), self.embedding.weight)


def positions(size: int, dim: int, like: Tensor) -> Tensor:
    """Sinusoidal positions (Vaswani et al. 2017, section 3.5): (size, dim)."""
    wave = torch.exp(torch.arange(0, dim, 2, device=like.device) * (-math.log(LONGEST_WAVE) / dim))
    angle = torch.arange(size, device=like.device)[:, None] * wave
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1).to(like.dtype)


def build_lm(settings: Model, units: int, seed: int = 0) -> TransformerLm:
    """A model with random weights drawn from `seed`, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TransformerLm(settings, units)


def count_parameters(model: TransformerLm) -> dict[str, int]:
    """Parameters of the blocks (trunk) and of the embedding, which is the output too (head)."""
    head = model.embedding.weight.numel()
    return {"trunk": sum(p.numel() for p in model.parameters()) - head, "head": head}
