"""Parts that autocast leaves in single precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Tensor])


def without_autocast(like: Tensor) -> torch.autocast:
    """A context without autocast on the tensor's device; meta tensors, which have none, count as the CPU's."""
    return torch.autocast("cpu" if like.is_meta else like.device.type, enabled=False)


def in_single_precision(function: Function) -> Function:
    """Under autocast, `function` has no part in it, and its first argument, a tensor, is of single precision."""

    @wraps(function)
    def call(x: Tensor, *others: object) -> Tensor:
        context = without_autocast(x)
        if not torch.is_autocast_enabled(context.device):
            return function(x, *others)  # traced ones stay as they are
        with context:
            return function(x.float(), *others)

    return call  # type: ignore[return-value]
