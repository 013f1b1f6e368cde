"""Writing checkpoints, whole or not at all; `distill.models.checkpoint` reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from distill.models.checkpoint import FORMAT, average, epoch_paths, load, load_recogniser

__all__ = ["FORMAT", "average", "epoch_paths", "load", "load_recogniser", "save"]


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint under a temporary name and rename it."""
    temporary = path.with_name(path.name + ".tmp")
    torch.save({"format": FORMAT, **content}, temporary)
    os.replace(temporary, path)
