"""Groups of parameters in the optimiser."""

from __future__ import annotations

from typing import NamedTuple


class ParameterGroup(NamedTuple):
    """An optimiser group of its own, of the parameters of each module that has it as `group`.

    lr_scale: learning rate relative to the model's. ascent: gradients are followed up. decays: as the model's weights.
    apart: gradients are clipped by their own norm, as another optimiser would.
    """

    name: str
    lr_scale: float = 1.0
    ascent: bool = False
    decays: bool = True
    apart: bool = False
