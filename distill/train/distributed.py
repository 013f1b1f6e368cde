"""One process, or the group that torchrun's environment describes."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

PEER_GONE = re.compile(
    r"another rank stopped|gloo|nccl|connection (closed|reset|refused)|(closed|reset) by peer|broken pipe"
    "|failed to recv|timed out",
    re.IGNORECASE,
)


Item = TypeVar("Item")
LONGEST_WAIT = 1800.0  # seconds in a collective; DISTILL_TIMEOUT is another value
ROLL_CALL = 20.0  # seconds that the first rank waits for an answer of the others, once a collective has failed


@dataclass(frozen=True)
class Ranks:
    """This process's rank among those that run a stage together."""

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
        with self.meeting():
            dist.all_reduce(value)
        return value

    def wrap(self, module: nn.Module, device: torch.device, skips_parts: bool = False) -> nn.Module:
        """DistributedDataParallel where there are several processes; skips_parts: an update may not use all of it."""
        if self.world == 1:
            return module
        ids = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True,
            find_unused_parameters=skips_parts,
        )  # fmt: skip

    def wait(self) -> None:
        """Barrier."""
        if self.world > 1:
            with self.meeting():
                dist.barrier()

    def share(self, value: Any) -> Any:
        """The first process's value, on every process."""
        if self.world == 1:
            return value
        values = [value]
        with self.meeting():
            dist.broadcast_object_list(values)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in the order of their ranks, on every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with self.meeting():
            dist.all_gather_object(values, value)
        return values

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's share of the items: every `world`-th one."""
        return items[self.rank :: self.world]

    @contextlib.contextmanager
    def meeting(self) -> Iterator[None]:
        """Context of every collective: raises RuntimeError with the way out where another rank has stopped or hangs."""
        try:
            yield
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if self.world == 1 or not PEER_GONE.search(reason):
                raise
            silent = self._silent()
            what = (
                f"no answer from {silent}, hung or cut off; another rank waits {_longest_wait():g} s for it"
                " (DISTILL_TIMEOUT)"
                if silent
                else f"another rank stopped (see its message; here: {reason})"
            )
            raise RuntimeError(
                f"rank {self.rank} of {self.world}: {what}; the same command continues from the last checkpoint"
            ) from None

    def _silent(self) -> str:
        """Ranks that neither answer nor have ended, as far as gloo finds out: the first asks all, the others it."""
        if (group := _second_group()) is None:
            return ""
        seconds, begun = ROLL_CALL * (1 if self.first else 2), time.monotonic()
        try:
            dist.monitored_barrier(group, timedelta(seconds=ROLL_CALL), wait_all_ranks=True)
        except RuntimeError as error:
            if time.monotonic() - begun >= seconds:
                found = re.search(r"[Rr]anks? ([\d, ]+) failed to pass", str(error))
                return f"rank {found[1] if found else 0}"
        return ""


def join(device: str, longest_wait: float = LONGEST_WAIT) -> tuple[Ranks, torch.device]:
    """Join the group that torchrun describes in the environment, or run alone.

    device: cpu, cuda or cuda:N; with torchrun each process takes the GPU of its local rank. longest_wait: seconds.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch finds no GPU here; use --device cpu")
    if "RANK" not in os.environ:
        return Ranks(), torch.device(device)
    missing = [key for key in ("WORLD_SIZE", "LOCAL_RANK") if key not in os.environ]
    if missing:
        raise ValueError(
            f"RANK is set in the environment, but {' and '.join(missing)} not; start the processes with torchrun,"
            " or unset RANK to run alone"
        )
    ranks = Ranks(*(int(os.environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    where = torch.device("cuda", ranks.local) if device.startswith("cuda") else torch.device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if not dist.is_initialized():
        longest = timedelta(seconds=_longest_wait(longest_wait))
        with ranks.meeting():
            dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=longest)
            _second_group()
    return ranks, where


def _longest_wait(default: float = LONGEST_WAIT) -> float:
    return float(os.environ.get("DISTILL_TIMEOUT", default))


@cache
def _second_group() -> dist.ProcessGroup | None:
    """A group beside gloo's first one, whose connections are closed once a collective has failed; made by all ranks."""
    if not dist.is_initialized() or dist.get_backend() != "gloo":
        return None
    return dist.new_group(timeout=timedelta(seconds=2 * ROLL_CALL))  # by which all but the first wait


def leave() -> None:
    """Leave the group: its threads would abort a process that ends while they run."""
    if dist.is_initialized():
        dist.destroy_process_group()
