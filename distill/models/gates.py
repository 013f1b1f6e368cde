"""Gates on units of a network, by which training prunes it: heads, channels, whole layers.

Hard concrete distributions of Louizos et al. 2018 (arXiv 1712.01312): factors in 0..1 that are exactly 0 or 1 with some
probability, so that the expected number of parameters has a gradient.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.config.model import Pruning
from distill.models.front_end import FrameNorm
from distill.models.groups import ParameterGroup
from distill.models.low_rank import LowRank

BETA, STRETCH, EPS = 2 / 3, 0.1, 1e-6
"""Temperature, width of the stretch beyond 0 and 1, and distance of uniform draws from 0 and 1 (DPHuBERT's code)."""
DROPPED = {"conv": 0.01, "heads": 0.01, "ffn": 0.5, "layers": 0.01}
"""Share of the units of each kind that is closed at first (DPHuBERT's code)."""
CHANNELS = ("conv", "ffn")
"""Kinds whose units are small."""
LAYER = "_layer"
"""End of the name of a gate on the whole layer."""


class Units(NamedTuple):
    """Equal units between modules of a network: their kind and number.

    made_by: modules that have the units as output channels; taken_by: the one that has them as input channels. alone:
    further modules, without use once the layer is gone. at_least: so many stay open.
    """

    kind: str
    number: int
    made_by: tuple[str, ...]
    taken_by: str
    alone: tuple[str, ...] = ()
    at_least: int = 0

    def below(self, place: str) -> Units:
        """The same with names as the owner of `place` has them."""
        made_by, alone = (tuple(f"{place}.{name}" for name in names) for names in (self.made_by, self.alone))
        return self._replace(made_by=made_by, taken_by=f"{place}.{self.taken_by}", alone=alone)

    def cut(self, owner: nn.Module) -> dict[str, int]:
        """Parameters of which each unit has a part: name -> the dimension that the units lie along."""
        made = {part: 0 for name in self.made_by for part in of_outputs(owner, name)}
        first = ".down" if isinstance(owner.get_submodule(self.taken_by), LowRank) else ""
        return made | {f"{self.taken_by}{first}.weight": 1}

    def whole(self, owner: nn.Module) -> list[str]:
        """All parameters that go with the layer."""
        names = (*self.made_by, self.taken_by, *self.alone)
        return [f"{name}.{part}" for name in names for part, _ in owner.get_submodule(name).named_parameters()]


def of_outputs(owner: nn.Module, module: str) -> list[str]:
    """Parameters of a module that each of its output channels has a part of."""
    place = f"{module}.up" if isinstance(owner.get_submodule(module), LowRank) else module
    return [f"{place}.{part}" for part, _ in owner.get_submodule(place).named_parameters()]


class Gate(nn.Module):
    """Factors of some units, 0 for closed ones; `draw` sets them for a forward.

    In training they are random (Eq. 10 and 11). In evaluation as many of the smallest are closed as are on average, all
    but `at_least` at most, and the others are functions of their log alpha alone, as in DPHuBERT.
    """

    factors: Tensor
    shift: float = 0.0  # added to all log alphas where they decide how many units are open

    def __init__(self, units: int, dropped: float, at_least: int, group: ParameterGroup) -> None:
        super().__init__()
        self.units, self.at_least, self.group = units, at_least, group
        self.log_alpha = nn.Parameter(torch.empty(units).normal_(math.log((1 - dropped) / dropped), 0.01))

    def open_probabilities(self) -> Tensor:
        """Of each unit (Eq. 12): (units,)."""
        return (self.log_alpha + self.shift - BETA * math.log(STRETCH / (1 + STRETCH))).sigmoid()

    def draw(self) -> None:
        """New factors: (units,)."""
        if self.training:
            uniform = torch.empty_like(self.log_alpha).uniform_(EPS, 1 - EPS)
            concrete = ((uniform.logit() + self.log_alpha) / BETA).sigmoid()
            self.factors = (concrete * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)
        else:
            closed = (self.units - self.open_probabilities().sum()).round().clamp_max(self.units - self.at_least)
            rank = self.log_alpha.argsort().argsort()
            self.factors = (0.8 * self.log_alpha / BETA).sigmoid() * (rank >= closed)

    @property
    def open(self) -> Tensor:
        """(units,) bool."""
        return self.factors > 0

    def share(self) -> Tensor:
        """Share of units that are open; in training the expected one, with its gradient."""
        return (self.open_probabilities() if self.training else self.open.float()).mean()

    def scaled(self, x: Tensor, axis: int = -1) -> Tensor:
        """x with the channels of each unit, along an axis, times its factor."""
        factors = self.factors.to(x.dtype).repeat_interleave(x.shape[axis] // self.units)
        return (x.movedim(axis, -1) * factors).movedim(-1, axis)

    def scale_input(self, module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        """A hook before a linear layer: (…, C)."""
        return self.scaled(inputs[0])

    def scale_output(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """A hook behind a linear layer: (…, C)."""
        return self.scaled(output)

    def close_output(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """A hook behind a linear layer: (…, C), its bias included, is 0 where all units are closed."""
        return output * self.open.any()


class Gates(nn.ModuleDict):
    """The gates of a network by name, hooked into its modules; none without pruning.

    units: what each gate, or the gate of that name and LAYER, closes. sizes: how many parameters depend on which gates.
    products: how many more the product of two factors has than they, negative where it takes their place. macs:
    multiply-adds with so many units, by name, which are what is pruned if settings.of has it.
    """

    def __init__(
        self, settings: Pruning | None, owner: nn.Module, units: Mapping[str, Units],
        macs: Callable[[Mapping[str, Any]], Any],
    ) -> None:  # fmt: skip
        super().__init__()
        self.of, self.macs = settings.of if settings else "parameters", macs
        self.kinds = kinds = settings.units if settings else ()
        group = ParameterGroup("gates", settings.lr_scale if settings else 1.0, decays=False)
        self.units = dict(units)
        over: dict[str, list[str]] = {name: [] for name, _ in owner.named_parameters()}
        for name, some in self.units.items():
            if some.kind in kinds and some.number:
                self[name] = gate = Gate(some.number, DROPPED[some.kind], some.at_least, group)
                hook_units(gate, owner, some)
                for part in some.cut(owner):
                    over[part].append(name)
            if some.number and not some.at_least:
                if "layers" in kinds:
                    self[name + LAYER] = gate = Gate(1, DROPPED["layers"], 0, group)
                    owner.get_submodule(some.taken_by).register_forward_hook(gate.scale_output)
                for part in some.whole(owner):
                    over[part].append(name + LAYER)
        self.sizes = Counter[tuple[str, ...]]()
        for name, parameter in owner.named_parameters():
            self.sizes[tuple(over[name])] += parameter.numel()
        self.products = [
            size_of_product(module, over[f"{name}.down.weight"], over[f"{name}.up.weight"])
            for name, module in owner.named_modules() if isinstance(module, LowRank)
        ]  # fmt: skip
        self.total = macs({}) if self.of == "macs" else self.sizes.total()

    @property
    def each(self) -> dict[str, Gate]:
        """The gates by name."""
        return dict(self.items())  # type: ignore[arg-type]

    def draw(self) -> None:
        """New factors of all gates, for a forward."""
        for gate in self.each.values():
            gate.draw()

    def sparsity(self) -> Tensor | None:
        """Share of the network that is closed, as `Gate.share` has it; None without gates."""
        return self._closed() if self else None

    def greatest_sparsity(self) -> float:
        """That with as many units closed as can be."""
        return 1 - float(self._left({name: gate.at_least / gate.units for name, gate in self.each.items()}))

    def check_reach(self, sparsity: float, setting: str) -> None:
        """Raises ValueError, naming the setting, for a share that the gates cannot close."""
        kinds = ", ".join(self.kinds)
        if not self:
            without = f"{kinds} of model.pruning.units are closed already" if kinds else "set model.pruning"
            raise ValueError(f"{setting}: {sparsity} is not in reach: the model has no gates; {without}")
        greatest = self.greatest_sparsity()
        if not 0 < sparsity <= greatest:
            raise ValueError(
                f"{setting}: {sparsity} is not in reach: with everything of model.pruning.units ({kinds}) closed the"
                f" sparsity is {greatest:.4f}; give a share above 0 and up to it, or prune more kinds"
            )

    @torch.no_grad()
    def settle(self, sparsity: float) -> None:
        """Shift all gates alike, so that evaluation closes this share as nearly as units allow.

        A training of few updates ends some percent away from its target, and later ones compare models of one size.
        What whole heads and layers leave over is made up by channels. Factors of units that stay open are what they
        were. Raises ValueError for a share out of reach.
        """
        self.check_reach(sparsity, "init_sparsity, --sparsity")
        gates, channels = self.each, {name for name, some in self.units.items() if some.kind in CHANNELS}
        self.eval()
        self._shift(gates.values(), sparsity)
        self._shift([gate for name, gate in gates.items() if name in channels], sparsity)

    def _shift(self, gates: Collection[Gate], sparsity: float) -> None:
        """Give some gates the shift with which all gates together close a share most nearly, by bisection."""
        high = 20 + max(float(gate.log_alpha.abs().max()) for gate in self.each.values())
        low, nearest = -high, (math.inf, 0.0)
        for _ in range(40):
            middle = (low + high) / 2
            self._set(gates, middle)
            beyond = float(self._closed()) - sparsity
            nearest = min(nearest, (abs(beyond), middle))
            low, high = (middle, high) if beyond > 0 else (low, middle)
        self._set(gates, nearest[1])

    def _set(self, gates: Collection[Gate], shift: float) -> None:
        for gate in gates:
            gate.shift = shift
        self.draw()

    def _closed(self) -> Tensor:
        return 1 - self._left({name: gate.share() for name, gate in self.each.items()})

    def _left(self, shares: Mapping[str, Any]) -> Any:
        """Share that is left, by the share of each gate's units: products where several cut one."""
        if self.of == "macs":
            share = {name: shares.get(name, 1.0) * shares.get(name + LAYER, 1.0) for name in self.units}
            left = self.macs({name: units.number * share[name] for name, units in self.units.items()})
        else:
            whole = {  # a layer goes with the last of its units, too
                name + LAYER: shares.get(name + LAYER, 1.0) * (shares.get(name, 1.0) > 0) for name in self.units
            }
            every = {**shares, **whole}
            left = open_part(self.sizes, every) + sum(min(0, open_part(more, every)) for more in self.products)
        return left / self.total


def size_of_product(factors: LowRank, down: Sequence[str], up: Sequence[str]) -> Counter[tuple[str, ...]]:
    """Parameters of the product of two factors less their own, by the gates that these depend on (down, up)."""
    rank, inputs, outputs = factors.down.out_features, factors.in_features, factors.out_features
    size = Counter({tuple(dict.fromkeys([*down, *up])): inputs * outputs})
    size.subtract({tuple(down): rank * inputs})
    size.subtract({tuple(up): rank * outputs})
    return size


def open_part(sizes: Mapping[tuple[str, ...], int], shares: Mapping[str, Any]) -> Any:
    """How many parameters are left, by the gates that they depend on and the share of each gate's units."""
    return sum(size * math.prod(shares[name] for name in over) for over, size in sizes.items())


def hook_units(gate: Gate, owner: nn.Module, units: Units) -> None:
    """Put a gate between the modules that make its units and the one that takes them."""
    taken_by = owner.get_submodule(units.taken_by)
    for norm in map(owner.get_submodule, units.made_by):
        if isinstance(norm, nn.LayerNorm):
            frames = "frames" if isinstance(norm, FrameNorm) else "forward"
            setattr(norm, frames, partial(norm_of_open, norm, gate))
    if isinstance(taken_by, nn.Conv1d):  # behind the activation of the layer before
        layer = owner.get_submodule(units.made_by[0].rpartition(".")[0])
        for call, axis in (("forward", 1), ("frames", 2)):
            setattr(layer, call, partial(_scaled_call, getattr(layer, call), gate, axis))
    else:
        taken_by.register_forward_pre_hook(gate.scale_input)
    if not units.at_least:
        taken_by.register_forward_hook(gate.close_output)


def norm_of_open(norm: nn.LayerNorm, gate: Gate, x: Tensor) -> Tensor:
    """x (…, C) normalised over open channels, as if there were no others."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # as autocast does for other norms
    used = gate.open.to(x.dtype)
    count = used.sum().clamp_min(1)
    centred = (x - (x * used).sum(-1, keepdim=True) / count) * used
    scale = (centred.square().sum(-1, keepdim=True) / count + norm.eps).rsqrt()
    return centred * scale * norm.weight + norm.bias


def _scaled_call(call: Callable[..., Tensor], gate: Gate, axis: int, *args: Any) -> Tensor:
    return gate.scaled(call(*args), axis)
