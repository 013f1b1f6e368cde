"""Linear maps of low rank, two factors in place of one matrix (papers/002)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """A linear map with a bias, by way of `rank` channels."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, inputs) -> (…, outputs)."""
        return self.up(self.down(x))


def linear(inputs: int, outputs: int, rank: int | None) -> nn.Linear | LowRank:
    """A linear map; by way of `rank` channels where that takes fewer products."""
    if rank is not None and linear_macs(inputs, outputs, rank) < inputs * outputs:
        return LowRank(inputs, outputs, rank)
    return nn.Linear(inputs, outputs)


def linear_macs(inputs: int, outputs: int, rank: int | None) -> int:
    """Multiply-adds of `linear`."""
    return inputs * outputs if rank is None else min(inputs * outputs, rank * (inputs + outputs))


def factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Of a weight (C, C_in) the best of a rank: that of `down` (rank, C_in), that of `up` (C, rank).

    Least squares, by singular values (Eckart and Young 1936), half of which go to each factor.
    """
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    root = values[:rank].sqrt()
    return (root[:, None] * right[:rank]).to(weight.dtype), (left[:, :rank] * root).to(weight.dtype)


def rank_of_energy(weights: Sequence[Tensor], energy: float) -> int:
    """Least rank of all weights (C, C_in) that keeps a share, above 0 and up to 1, of the sum of their squares."""
    squares = [torch.linalg.svdvals(weight.double()).square() for weight in weights]
    kept = nn.utils.rnn.pad_sequence(squares).sum(1)  # by rank: those of further values are 0 where a weight has fewer
    return min(len(kept), 1 + int((kept.cumsum(0) < energy * kept.sum()).sum()))


def linear_maps(owner: nn.Module) -> dict[str, Tensor]:
    """Weights (C, C_in) of the linear maps in a module by name, of one in two factors their product."""
    maps = {}
    for name, module in owner.named_modules():
        if isinstance(module, LowRank):
            maps[name] = module.up.weight @ module.down.weight
        elif isinstance(module, nn.Linear) and name.rpartition(".")[0] not in maps:
            maps[name] = module.weight
    return maps


def greatest_rank(owner: nn.Module) -> int:
    """The greatest rank that makes some linear map in a module smaller; 0 where none does."""
    return max(((a * b - 1) // (a + b) for a, b in (weight.shape for weight in linear_maps(owner).values())), default=0)


def refactored(
    state: Mapping[str, Tensor], like: nn.Module, origin: Callable[[str], str], slices: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Parameters for the linear maps of `like` that have other factors in a state dict.

    origin: the name in the state dict of a module of `like`. slices: prefixes of names of which the leading part is
    meant where the state dict has more.
    """
    made: dict[str, Tensor] = {}
    for name, module in like.named_modules():
        if not isinstance(module, (LowRank, nn.Linear)) or not (found := _whole(state, origin(name))):
            continue
        weight, bias = found
        if name.startswith(tuple(slices)):
            weight, bias = weight[: module.out_features, : module.in_features], bias[: module.out_features]
        if weight.shape != (module.out_features, module.in_features):
            continue
        if isinstance(module, nn.Linear):
            made |= {f"{name}.weight": weight, f"{name}.bias": bias} if f"{origin(name)}.weight" not in state else {}
        elif getattr(state.get(f"{origin(name)}.down.weight"), "shape", None) != module.down.weight.shape:
            down, up = factors(weight, module.down.out_features)
            made |= {f"{name}.down.weight": down, f"{name}.up.weight": up, f"{name}.up.bias": bias}
    return made


def _whole(state: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of a linear map of a state dict, its factors multiplied; None where it is not there."""
    if f"{name}.up.weight" in state:
        return state[f"{name}.up.weight"] @ state[f"{name}.down.weight"], state[f"{name}.up.bias"]
    weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
    return None if weight is None or bias is None else (weight, bias)
