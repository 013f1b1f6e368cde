"""Parts that autocast leaves in single precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Tensor])


def device_of(x: Tensor) -> str:
    """The type of device whose autocast a tensor has; meta tensors, which have none, count as the CPU's."""
    return "cpu" if x.is_meta else x.device.type


def without_autocast(like: Tensor) -> torch.autocast:
    """A context without autocast on the tensor's device."""
    return torch.autocast(device_of(like), enabled=False)


def in_single_precision(function: Function) -> Function:
    """Under autocast, `function` has no part in it, and its first argument, a tensor, is of single precision."""

    @wraps(function)
    def call(x: Tensor, *others: object, **named: object) -> Tensor:
        if not torch.is_autocast_enabled(device_of(x)):
            return function(x, *others, **named)  # traced ones stay as they are
        with without_autocast(x):
            return function(x.float(), *others, **named)

    return call  # type: ignore[return-value]
