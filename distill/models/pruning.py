"""Slimming: the ordinary, smaller model that is left of one with gates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from distill.config.model import Model as ModelSettings
from distill.models.encoder import BLOCKS
from distill.models.gates import LAYER, of_outputs
from distill.models.low_rank import greatest_rank, refactored
from distill.models.macs import with_units
from distill.models.recogniser import Recogniser, without_values


def slimmed(model: Recogniser) -> Recogniser:
    """A model of the open units alone, in evaluation: same outputs, widths in its settings, no gates."""
    plain, state = model.settings.model_copy(update={"pruning": None}), slimmed_state(model)
    slim = Recogniser(with_widths(plain, open_units(model)), model.outputs)
    state |= refactored(state, slim, str)  # a rank that is none for fewer units
    slim.load_state_dict({name: state[name] for name in slim.state_dict()})
    return slim.eval()


def check_rank(settings: ModelSettings) -> None:
    """Raises ValueError for an encoder's rank that makes no linear map smaller."""
    rank = settings.encoder.rank
    if rank is not None and rank > (greatest := greatest_rank(without_values(settings).encoder.blocks)):
        raise ValueError(f"model.encoder.rank: {rank} makes no linear map smaller; give at most {greatest}")


def open_units(model: Recogniser) -> dict[str, int]:
    """How many units are open, by the names of gates."""
    return {name: int((factors > 0).sum()) for name, (factors, _) in _factors(model).items()}


def with_widths(settings: ModelSettings, units: Mapping[str, int], head_dim: int | None = None) -> ModelSettings:
    """Settings with so many units in place of their own, and heads of so many channels (default: their own)."""
    encoder, values = settings.encoder, with_units(settings, units).model_dump()
    for name in BLOCKS[encoder.block].units(encoder, 0):
        each = values["encoder"][name]
        values["encoder"][name] = each[0] if each[0] and len(set(each)) == 1 else each
    heads, values["encoder"]["head_dim"] = values["encoder"]["heads"], head_dim or encoder.widths().head_dim
    if isinstance(heads, int) and heads * values["encoder"]["head_dim"] == encoder.dim:
        values["encoder"]["head_dim"] = encoder.head_dim
    return ModelSettings.model_validate(values)


@torch.no_grad()
def slimmed_state(model: Recogniser) -> dict[str, Tensor]:
    """Parameters of the open units, multiplied by their factors where they are taken in."""
    state = {name: x for name, x in model.state_dict().items() if not name.startswith("gates.")}
    for name, (factors, whole) in _factors(model).items():
        units, kept = model.gates.units[name], factors.nonzero()[:, 0]
        if not units.number:
            continue
        if not len(kept):
            for part in units.whole(model):
                del state[part]
            continue
        for part, axis in units.cut(model).items():
            of_units = state[part].unflatten(axis, (units.number, -1)).index_select(axis, kept)
            state[part] = of_units.flatten(axis, axis + 1)
            if part.startswith(f"{units.taken_by}."):
                scale = factors[kept].repeat_interleave(state[part].shape[1] // len(kept))
                state[part] = state[part] * scale.view(-1, *[1] * (state[part].ndim - 2))
        for part in of_outputs(model, units.taken_by):
            state[part] = state[part] * whole
    return state


@torch.no_grad()
def _factors(model: Recogniser) -> dict[str, tuple[Tensor, Tensor]]:
    """In evaluation, factors of the units, 0 where their layer is closed, and that of the layer: by names of gates."""
    gates = model.gates.eval()
    gates.draw()
    factors = {name: gate.factors for name, gate in gates.each.items()}
    found = {}
    for name, units in gates.units.items():
        whole = factors.get(name + LAYER, torch.ones(1))
        found[name] = (factors.get(name, torch.ones(units.number)) * (whole > 0), whole)
    return found
