"""AdamW with parameter groups."""

from __future__ import annotations

import torch
from torch import nn

from distill.config.training import Optim
from distill.models.groups import ParameterGroup

MODEL = ParameterGroup("model")
TRUNK = ("model.front_end.", "model.encoder.")
"""Beginnings of the names of its parameters in a training step."""


def build_optimiser(step: nn.Module, settings: Optim, device: torch.device) -> torch.optim.AdamW:
    """AdamW of a step's trainable parameters: one group for the model, and those that modules have as `group`.

    With `trunk_scale` front-end and encoder are a group of their own. A group has besides torch's keys `lr_scale`, its
    learning rate relative to the model's (`set_rate`), and `apart` (`clipped_together`).
    """
    groups: dict[ParameterGroup, list[nn.Parameter]] = {MODEL: []}
    own = {
        p: group for module in step.modules() if (group := getattr(module, "group", None)) for p in module.parameters()
    }
    trunk = MODEL if settings.trunk_scale == 1 else ParameterGroup("trunk", settings.trunk_scale)
    for name, parameter in step.named_parameters():
        if parameter.requires_grad:
            group = trunk if name.startswith(TRUNK) else MODEL
            groups.setdefault(own.get(parameter, group), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters, "lr_scale": group.lr_scale, "maximize": group.ascent,
                "weight_decay": settings.weight_decay * group.decays, "apart": group.apart,
            }
            for group, parameters in groups.items()
        ],
        settings.lr, settings.betas, settings.eps, fused=device.type in ("cpu", "cuda"),
    )  # fmt: skip


def clipped_together(optimiser: torch.optim.Optimizer) -> list[list[nn.Parameter]]:
    """Parameters whose gradients are clipped by one norm: the model's first, then those of each group apart."""
    groups = optimiser.param_groups
    together = [parameter for group in groups if not group["apart"] for parameter in group["params"]]
    return [together, *(group["params"] for group in groups if group["apart"])]


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the model's learning rate, and that of every other group by its scale."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_scale"]
