"""Prediction layers: hidden states to logits."""

from __future__ import annotations

from torch import Tensor, nn


class Head(nn.Module):
    """A prediction layer `output` behind a map of the last hidden state."""

    output: nn.Linear

    def mapped(self, hidden: Tensor) -> Tensor:
        """Input of prediction layers: hidden (B, T, C) as it is."""
        return hidden

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (B, T, C) -> logits (B, T, V)."""
        return self.output(self.mapped(hidden))


class LinearHead(Head):
    """A linear prediction layer alone."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.output = prediction_layer(dim, outputs)


class SharedHead(Head):
    """The teacher's prediction layer behind the last W_i of hidden-layer distillation.

    papers/001 Eq. 2: W_i (d -> d_T) maps student to teacher. With it kept at inference, the teacher's prediction
    layer fits the student's last hidden state.
    """

    def __init__(self, dim: int, outputs: int, shared_dim: int) -> None:
        super().__init__()
        self.shared_projection = nn.Linear(dim, shared_dim, bias=False)
        self.output = prediction_layer(shared_dim, outputs)

    def mapped(self, hidden: Tensor) -> Tensor:
        """Input of prediction layers: hidden (B, T, C) -> (B, T, d_T)."""
        return self.shared_projection(hidden)


def build_head(dim: int, outputs: int, shared_dim: int | None) -> Head:
    """The head of a model; shared_dim: the teacher's width d_T, None for a head of its own."""
    return SharedHead(dim, outputs, shared_dim) if shared_dim else LinearHead(dim, outputs)


def prediction_layer(dim: int, outputs: int) -> nn.Linear:
    """A small random linear layer."""
    layer = nn.Linear(dim, outputs)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
