"""Copy parameters from one recogniser to another, and freeze them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from distill.config.experiment import Experiment
from distill.models.low_rank import refactored
from distill.models.recogniser import Recogniser

TITLES = {
    "copied": "copied",
    "sliced": "sliced",
    "refactored": "copied in other factors (singular values)",
    "other_shape": "initialised anew (another shape)",
    "absent": "initialised anew (not in the source)",
    "unused": "not taken over",
}
BLOCK = re.compile(r"(encoder\.blocks\.|gates\.block)(\d+)([._])")
FACTOR = re.compile(r"(\.(down|up))?\.(weight|bias)$")  # of the end of a linear map's parameter


@dataclass(frozen=True)
class CopyReport:
    """Names of parameters and buffers of the target by what happened to them; unused: names of the source.

    A name that is initialised from a different one is written "name <- source".
    """

    copied: tuple[str, ...]
    sliced: tuple[str, ...]
    refactored: tuple[str, ...]
    other_shape: tuple[str, ...]
    absent: tuple[str, ...]
    unused: tuple[str, ...]

    def lines(self) -> list[str]:
        """One line per name, for a file beside the checkpoints."""
        return [f"{title}\t{name}" for kind, title in TITLES.items() for name in getattr(self, kind)]

    def summary(self) -> str:
        """Counts in one line."""
        anew = len(self.other_shape) + len(self.absent)
        copied = len(self.copied) + len(self.refactored)
        return (
            f"{copied} tensors copied, {len(self.sliced)} sliced, {anew} initialised anew,"
            f" {len(self.unused)} not taken over"
        )


def copy_matching(
    source: Mapping[str, Tensor],
    target: torch.nn.Module,
    blocks: Sequence[int] = (),
    slices: Sequence[str] = (),
    leave: Sequence[str] = (),
) -> CopyReport:
    """Copy parameters of the same name and shape from a state dict; the report lists all others.

    blocks: the source's block, from 1, that each block starts from (default: the one of the same number).
    slices: prefixes of names whose leading part is copied where the source is larger in some dimension.
    leave: prefixes of names that have another meaning in the source, and are not copied.
    Raises ValueError if nothing fits at all, or for a block that the source does not have.
    """
    check_blocks(source, blocks)
    own = target.state_dict()
    origin = {name: origin_of(name, blocks) for name in own}
    there = {name: tensor for name, tensor in source.items() if not name.startswith(tuple(leave))}
    kinds = {name: kind_of_copy(x, there.get(origin[name]), name.startswith(tuple(slices))) for name, x in own.items()}
    factors = refactored(there, target, partial(origin_of, blocks=blocks), slices)
    kinds |= dict.fromkeys(factors, "refactored")
    for name in own:  # the scale of a weight-normed kernel means nothing without its direction
        direction = name.removesuffix("original0") + "original1"
        if name.endswith(".original0") and kinds[name] == "copied" and kinds[direction] not in ("copied", "sliced"):
            kinds[name] = kinds[direction]
    taken = [name for name, kind in kinds.items() if kind in ("copied", "sliced")]
    if not taken and not factors:
        raise ValueError("no parameter of the source has the name and shape of one here: another family of model?")
    with torch.no_grad():
        for name in taken:
            own[name].copy_(source[origin[name]][tuple(slice(size) for size in own[name].shape)])
        for name, value in factors.items():
            own[name].copy_(value)
    groups: dict[str, list[str]] = {kind: [] for kind in TITLES}
    for name, kind in kinds.items():
        groups[kind].append(name if origin[name] == name else f"{name} <- {origin[name]}")
    used = {origin[name] for name in own if kinds[name] != "absent"}
    maps = tuple({FACTOR.sub(".", origin[name]) for name in factors})
    groups["unused"] = [name for name in source if name not in used and not name.startswith(maps)]
    return CopyReport(**{kind: tuple(names) for kind, names in groups.items()})


def kind_of_copy(own: Tensor, theirs: Tensor | None, may_slice: bool = False) -> str:
    """What happens to a tensor here with the one of its name in the source: of TITLES."""
    if theirs is None:
        return "absent"
    if theirs.shape == own.shape:
        return "copied"
    larger = theirs.ndim == own.ndim and all(a >= b for a, b in zip(theirs.shape, own.shape))
    return "sliced" if may_slice and larger else "other_shape"


def origin_of(name: str, blocks: Sequence[int]) -> str:
    """The name in the source of a name here: that of the block, from 1, which its block starts from."""
    if blocks and (match := BLOCK.match(name)):
        return f"{match[1]}{blocks[int(match[2])] - 1}{match[3]}{name[match.end() :]}"
    return name


def check_blocks(source: Mapping[str, Tensor], blocks: Sequence[int]) -> None:
    """Raise ValueError for a block that the source does not have."""
    there = {int(match[2]) for name in source if (match := BLOCK.match(name))}
    if missing := sorted({number for number in blocks if number - 1 not in there}):
        raise ValueError(f"init_blocks names blocks {missing}, but the source has blocks 1..{len(there)}")


def frozen_parameters(experiment: Experiment, model: Recogniser) -> list[tuple[int, nn.Parameter]]:
    """(updates, parameter) of `experiment.frozen`; parameters that are never trained need no gradient from now on.

    Raises ValueError for a beginning that no parameter's name has.
    """
    held = []
    for beginning, updates in experiment.frozen.items():
        found = [parameter for name, parameter in model.named_parameters() if name.startswith(beginning)]
        if not found:
            parts = ", ".join(name for name, _ in model.named_children())
            raise ValueError(
                f"{experiment.name}: frozen: no parameter's name begins with {beginning!r}; parts: {parts}"
            )
        if updates == "all":
            for parameter in found:
                parameter.requires_grad_(False)
        else:
            held += [(updates, parameter) for parameter in found]
    return held
