"""What an update computes with: its precision, checkpointed and compiled blocks; no parameter is renamed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from distill.config.training import Compute
from distill.models.encoder import BLOCKS
from distill.models.front_end import ConvLayer

log = logging.getLogger(__name__)
FAST = {  # instructions for a type, as torch names them: of x86, and last of ARM
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}


@contextmanager
def computing_in(precision: torch.dtype, device: torch.device) -> Iterator[None]:
    """Products of this type in the forward pass, and so in its backward pass, by autocast.

    In half precision a CPU computes attention step by step, its weights in single precision: torch's fused kernel takes
    twice the time there.
    """
    half = precision != torch.float32
    stepwise = half and device.type == "cpu"
    with (
        torch.autocast(device.type, precision, enabled=half),
        sdpa_kernel(SDPBackend.MATH) if stepwise else nullcontext(),
    ):
        yield


def warn_of_slow_precision(precision: torch.dtype, device: torch.device) -> None:
    """Log where half precision takes more time than single precision; no torch before 2.11 names instructions."""
    if device.type != "cpu" or precision not in FAST or not hasattr(torch.cpu, "get_capabilities"):
        return
    able = torch.cpu.get_capabilities()
    if not any(able.get(name) for name in FAST[precision]):
        log.warning(
            "optim.precision: this processor has no instructions for %s, so that updates take longer than in float32;"
            " the results are valid", str(precision).removeprefix("torch."),
        )  # fmt: skip


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
