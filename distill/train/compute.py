"""Memory against time in a training's blocks: activation checkpointing and compilation; no parameter is renamed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from distill.config.training import Compute
from distill.models.encoder import BLOCKS
from distill.models.front_end import ConvLayer


def wrap_blocks(settings: Compute, models: Iterable[nn.Module]) -> None:
    """Replace the forward of each block; of convolutions as well where they are compiled.

    Blocks are compiled one by one: all of the same widths share one compiled graph, so that it takes seconds for any
    depth, and dropping a block needs no other one. State dicts keep their names, as modules stay the same.
    """
    kinds = (*BLOCKS.values(), ConvLayer) if settings.compile else tuple(BLOCKS.values())
    blocks: list[Any] = [module for model in models for module in model.modules() if isinstance(module, kinds)]
    for block in blocks:
        if settings.compile:
            block.forward = torch.compile(block.forward, dynamic=True)
        if settings.checkpoint_activations and type(block) is not ConvLayer:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
