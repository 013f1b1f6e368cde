"""One process or many: torchrun's environment decides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """Who we are among the training processes."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all processes."""
        if self.world == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """DistributedDataParallel where there are several processes."""
        if self.world == 1:
            return module
        ids = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids)

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()

    def share(self, value: Any) -> Any:
        """The first process's value, on every process."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in the order of their ranks, on every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's share of the items: every `world`-th one."""
        return items[self.rank :: self.world]


def join(device: str) -> tuple[Ranks, torch.device]:
    """Enter the group that torchrun describes in the environment, or run alone.

    device: cpu, cuda or cuda:N; with torchrun each process takes the GPU of its local rank.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch sees no GPU here; use --device cpu")
    if "RANK" not in os.environ:
        return Ranks(), torch.device(device)
    ranks = Ranks(*(int(os.environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    where = torch.device("cuda", ranks.local) if device.startswith("cuda") else torch.device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    return ranks, where
