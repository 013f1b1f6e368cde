"""Build a recogniser and fill it from another one."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.config.model import Model as ModelSettings
from distill.models.recogniser import Recogniser

log = logging.getLogger(__name__)

KINDS = ("copied", "sliced", "other_shape", "absent")
BLOCK = re.compile(r"encoder\.blocks\.(\d+)\.")


def build_model(settings: ModelSettings, outputs: int, seed: int = 0) -> Recogniser:
    """A recogniser with random weights drawn from `seed`, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Recogniser(settings, outputs)


@dataclass(frozen=True)
class CopyReport:
    """Names of parameters and buffers here: taken over, in part, of another shape, absent in the source; left there.

    A name that comes from another one is written "name <- source".
    """

    copied: tuple[str, ...]
    sliced: tuple[str, ...]
    other_shape: tuple[str, ...]
    absent: tuple[str, ...]
    unused: tuple[str, ...]

    def lines(self) -> list[str]:
        """One line per name, for a file beside the checkpoints."""
        groups = {
            "copied": self.copied,
            "sliced": self.sliced,
            "initialised anew (another shape)": self.other_shape,
            "initialised anew (not in the source)": self.absent,
            "not taken over": self.unused,
        }
        return [f"{title}\t{name}" for title, names in groups.items() for name in names]

    def summary(self) -> str:
        """Counts in one line."""
        anew = len(self.other_shape) + len(self.absent)
        return (
            f"{len(self.copied)} tensors copied, {len(self.sliced)} sliced, {anew} initialised anew,"
            f" {len(self.unused)} not taken over"
        )


def copy_matching(
    source: Mapping[str, Tensor],
    target: torch.nn.Module,
    blocks: Sequence[int] = (),
    slices: Sequence[str] = (),
    leave: Sequence[str] = (),
) -> CopyReport:
    """Copy what has the same name and shape from a state dict; the report names everything else.

    blocks: the source's block, from 1, that each block starts from (default: the one of the same number).
    slices: beginnings of names whose leading part is taken where the source is larger in some dimension.
    leave: beginnings of names that mean something else in the source, and are not taken.
    Raises ValueError if nothing fits at all, or for a block that the source does not have.
    """
    own, origin = target.state_dict(), _origins(target, source, blocks)
    there = {name: tensor for name, tensor in source.items() if not name.startswith(tuple(leave))}
    sliced = {name for name in own if name.startswith(tuple(slices))}
    kinds = {name: _kind(value, there.get(origin[name]), name in sliced) for name, value in own.items()}
    for name in own:  # a weight-normed kernel's scale means nothing without its direction
        direction = name.removesuffix("original0") + "original1"
        if name.endswith(".original0") and kinds[name] == "copied" and kinds[direction] not in ("copied", "sliced"):
            kinds[name] = kinds[direction]
    if not any(kind in ("copied", "sliced") for kind in kinds.values()):
        raise ValueError("no parameter of the source has the name and shape of one here: another family of model?")
    with torch.no_grad():
        for name, kind in kinds.items():
            if kind in ("copied", "sliced"):
                own[name].copy_(source[origin[name]][tuple(slice(size) for size in own[name].shape)])
    titles = {name: name if origin[name] == name else f"{name} <- {origin[name]}" for name in own}
    groups = {kind: tuple(titles[n] for n in own if kinds[n] == kind) for kind in KINDS}
    used = {origin[name] for name in own if kinds[name] != "absent"}
    return CopyReport(**groups, unused=tuple(name for name in source if name not in used))


def _kind(own: Tensor, theirs: Tensor | None, may_slice: bool) -> str:
    if theirs is None:
        return "absent"
    if theirs.shape == own.shape:
        return "copied"
    larger = theirs.ndim == own.ndim and all(a >= b for a, b in zip(theirs.shape, own.shape))
    return "sliced" if may_slice and larger else "other_shape"


def _origins(target: torch.nn.Module, source: Mapping[str, Tensor], blocks: Sequence[int]) -> dict[str, str]:
    """{name here: name in the source}."""
    there = {int(match[1]) for name in source if (match := BLOCK.match(name))}
    missing = sorted({number for number in blocks if number - 1 not in there})
    if missing:
        raise ValueError(f"init_blocks names blocks {missing}, but the source has blocks 1..{len(there)}")

    def origin(name: str) -> str:
        match = BLOCK.match(name)
        if match is None or not blocks:
            return name
        return f"encoder.blocks.{blocks[int(match[1])] - 1}.{name[match.end() :]}"

    return {name: origin(name) for name in target.state_dict()}
