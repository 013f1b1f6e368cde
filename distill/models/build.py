"""Build a recogniser and fill it from another one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.config import Model as ModelSettings
from distill.models.recogniser import Recogniser

log = logging.getLogger(__name__)


def build_model(settings: ModelSettings, outputs: int, seed: int = 0) -> Recogniser:
    """A recogniser with random weights drawn from `seed`, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Recogniser(settings, outputs)


@dataclass(frozen=True)
class CopyReport:
    """Names of parameters and buffers: taken over, of another shape, absent in the source, left in the source."""

    copied: tuple[str, ...]
    other_shape: tuple[str, ...]
    absent: tuple[str, ...]
    unused: tuple[str, ...]

    def lines(self) -> list[str]:
        """One line per name, for a file beside the checkpoints."""
        groups = {
            "copied": self.copied,
            "initialised anew (another shape)": self.other_shape,
            "initialised anew (not in the source)": self.absent,
            "not taken over": self.unused,
        }
        return [f"{title}\t{name}" for title, names in groups.items() for name in names]

    def summary(self) -> str:
        """Counts in one line."""
        anew = len(self.other_shape) + len(self.absent)
        return f"{len(self.copied)} tensors copied, {anew} initialised anew, {len(self.unused)} not taken over"


def copy_matching(source: Mapping[str, Tensor], target: torch.nn.Module) -> CopyReport:
    """Copy what has the same name and shape from a state dict; the report names everything else.

    Raises ValueError if nothing fits at all.
    """
    own = target.state_dict()
    fits = {name: name in source and source[name].shape == value.shape for name, value in own.items()}
    copied = tuple(name for name in own if fits[name])
    if not copied:
        raise ValueError("no parameter of the source has the name and shape of one here: another family of model?")
    with torch.no_grad():
        for name in copied:
            own[name].copy_(source[name])
    return CopyReport(
        copied,
        tuple(name for name in own if name in source and not fits[name]),
        tuple(name for name in own if name not in source),
        tuple(name for name in source if name not in own),
    )
