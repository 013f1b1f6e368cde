"""AdamW with parameter groups."""

from __future__ import annotations

import torch
from torch import nn

from distill.config.training import Optim
from distill.losses.term import LossTerm, ParameterGroup

MODEL = ParameterGroup("model")


def build_optimiser(step: nn.Module, settings: Optim, device: torch.device) -> torch.optim.AdamW:
    """AdamW of a step's trainable parameters: one group for the model, one per term with a group of its own.

    A group has besides torch's keys `lr_scale`, its learning rate relative to the model's (`set_rate`).
    """
    groups: dict[ParameterGroup, list[nn.Parameter]] = {MODEL: []}
    own = {p: term.group for term in step.modules() if isinstance(term, LossTerm) for p in term.parameters()}
    for parameter in step.parameters():
        if parameter.requires_grad:
            groups.setdefault(own.get(parameter) or MODEL, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr_scale": group.lr_scale, "maximize": group.ascent}
            for group, parameters in groups.items()
        ],
        settings.lr, settings.betas, settings.eps, settings.weight_decay, fused=device.type in ("cpu", "cuda"),
    )  # fmt: skip


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the model's learning rate, and that of every other group by its scale."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_scale"]
