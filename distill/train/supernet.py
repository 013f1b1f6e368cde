"""Training of a supernet (LightHuBERT, Wang et al. 2022): each update trains a network made of parts of its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.func import functional_call

from distill.batch import Batch, Targets
from distill.config.model import Model
from distill.config.supernet import Supernet
from distill.losses.objective import Objective
from distill.losses.term import Losses
from distill.models.recogniser import Recogniser
from distill.train.loop import TrainingStep

Number = TypeVar("Number", int, float)


class SupernetStep(TrainingStep):
    """A model and its objective; in training a network drawn from the settings in its place, with its leading weights.

    objective_of: makes the objective of a network, whose parameters are parts of the model's objective.
    """

    def __init__(
        self, model: Recogniser, objective: Objective, settings: Supernet, objective_of: Callable[[Model], Objective]
    ) -> None:
        super().__init__(model, objective)
        self.settings, self.objective_of = settings, objective_of

    def forward(self, batch: Batch, targets: Targets | None) -> Losses:
        """Validation is of the whole model."""
        if not self.training:
            return super().forward(batch, targets)
        shape = drawn_network(self.model.settings, self.settings, self.model.encoder.draws)
        with torch.device("meta"):
            step = TrainingStep(Recogniser(shape, self.model.outputs), self.objective_of(shape)).train()
        step.model.encoder.draws = self.model.encoder.draws
        step.objective.update_number = self.objective.update_number
        return functional_call(step, parts(self, step), (batch, targets))


def parts(whole: torch.nn.Module, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The leading part of each parameter and buffer of a module, in the shape of that of another one."""
    own = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    shapes = {name: x.shape for name, x in [*network.named_parameters(), *network.named_buffers()]}
    return {name: own[name][tuple(map(slice, shape))] for name, shape in shapes.items()}


def drawn_network(model: Model, settings: Supernet, draws: torch.Generator | None = None) -> Model:
    """The settings of a network of the supernet."""

    def one_of(values: tuple[Number, ...]) -> Number:
        return values[int(torch.randint(len(values), (), generator=draws))]

    encoder, dim, layers = model.encoder, one_of(settings.dim), one_of(settings.layers)
    changes = {
        "dim": dim, "layers": layers, "head_dim": encoder.widths().head_dim,
        "heads": tuple(one_of(settings.heads) for _ in range(layers)),
        "ffn_dim": tuple(round(one_of(settings.ffn_ratio) * dim) for _ in range(layers)),
    }  # fmt: skip
    return model.model_copy(update={"encoder": encoder.model_copy(update=changes)})
