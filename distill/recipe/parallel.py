"""Items of work of stages 7, 10 and 11, shared by the ranks of a launcher, or by processes on a CPU."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from distill.recipe import launch
from distill.recipe.options import Recipe
from distill.recipe.script import log_to_console
from distill.recipe.stage import Alone, Stage

if TYPE_CHECKING:
    from distill.train.distributed import Ranks

log = logging.getLogger("parallel")
Item = TypeVar("Item")
Phase = tuple[Callable[[Recipe, Any], None], Sequence[Any]]  # work, and the items that it is done for
GRACE = 10.0  # seconds in which a process that was signalled to end may remove its temporary files
LONGEST_WAIT = 7 * 86400.0  # seconds that ranks without more items wait for the others
KNOWN = (FileNotFoundError, OSError, FloatingPointError, ValueError, RuntimeError)


def join(recipe: Recipe, longest_wait: float | None = LONGEST_WAIT) -> tuple[Alone | Ranks, Recipe]:
    """The ranks that a launcher started, and the recipe with this rank's device.

    longest_wait: seconds that a rank waits for another; None: as long as in a training.
    """
    if "RANK" not in os.environ:
        return Alone(), recipe
    from distill.train import distributed

    ranks, device = distributed.join(recipe.device, longest_wait or distributed.LONGEST_WAIT)
    return ranks, replace(recipe, device=str(device))


def each(recipe: Recipe, ranks: Alone | Ranks, *phases: Phase) -> None:
    """Call the work of every phase once for each of its items, phase after phase.

    Under a launcher each rank takes every world-th of the first rank's items. Else, on a CPU, up to --nj processes
    take the next item as they become free, so the long ones should come first; on a GPU this process takes all. These
    are processes because threads of one would block each other. Raises the first error of an item, RuntimeError for a
    process that was killed.
    """
    processes = min(recipe.nj, max(len(items) for _, items in phases))
    if isinstance(ranks, Alone) and recipe.device == "cpu" and processes > 1:
        _spread(replace(recipe, nj=recipe.nj // processes), phases, processes)
        return
    for work, items in phases:
        for item in items if isinstance(ranks, Alone) else ranks.mine(ranks.share(items)):
            work(recipe, item)
        ranks.wait()


def stages_of(*phases: Sequence[tuple[Item, Sequence[Stage]]]) -> list[Stage]:
    """The stages of all items of some phases."""
    return [stage for items in phases for _, stages in items for stage in stages]


def unfinished(items: Iterable[tuple[Item, Sequence[Stage]]]) -> list[Item]:
    """The items with a stage that is not up to date; no process is started for the others."""
    result = []
    for item, stages in items:
        if not all(stage.up_to_date() for stage in stages):
            result.append(item)
            continue
        for stage in stages:
            stage.tidy()
            log.info("stage %d: up to date (%s)", stage.number, stage.out)
    return result


class Process(NamedTuple):
    """A worker process, and the pipe that sends it items and returns their errors."""

    process: BaseProcess
    pipe: Connection


def _spread(recipe: Recipe, phases: Sequence[Phase], count: int) -> None:
    with _processes(recipe, count) as free:
        for work, items in phases:
            waiting, busy = list(reversed(items)), dict[Any, Process]()
            while waiting or busy:
                while waiting and free:
                    chosen = free.pop()
                    busy[chosen.pipe] = chosen
                    with contextlib.suppress(BrokenPipeError):  # a process that is gone: `_check` raises its error
                        chosen.pipe.send((work, waiting.pop()))
                for pipe in wait(list(busy)):
                    free.append(busy.pop(pipe))
                    _check(free[-1])


def _check(finished: Process) -> None:
    """Raise the error of the item that a process has finished, or RuntimeError where the process is gone."""
    try:
        error = finished.pipe.recv()
    except (EOFError, ConnectionError):
        finished.process.join()
        code = finished.process.exitcode or 0
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
        memory = " (did memory run out? fewer processes, --nj, need less)" if code == -signal.SIGKILL else ""
        raise RuntimeError(
            f"process {finished.process.pid} ended before its work was done, {how}{memory};"
            " the same command continues where it stopped"
        ) from None
    if error is not None:
        raise error


@contextlib.contextmanager
def _processes(recipe: Recipe, count: int) -> Iterator[list[Process]]:
    """`count` processes that wait for items; none of them outlives the block."""
    context = multiprocessing.get_context("spawn")  # a fork may inherit locked locks and wait for ever
    started: list[Process] = []
    threads = os.environ["OMP_NUM_THREADS"]  # libraries read it when they are loaded
    try:
        os.environ["OMP_NUM_THREADS"] = str(recipe.nj)
        for _ in range(count):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(recipe, there), daemon=True)
            process.start()
            there.close()  # so that the end of the process is the end of the pipe
            started.append(Process(process, here))
        os.environ["OMP_NUM_THREADS"] = threads
        yield list(started)
    finally:
        os.environ["OMP_NUM_THREADS"] = threads
        for each in started:
            each.process.terminate()
        for each in started:
            each.process.join(GRACE)
            each.process.kill()
            each.process.join()
            each.pipe.close()


def _serve(recipe: Recipe, pipe: Connection) -> None:
    """The main loop of a worker: answers each item with None or its error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the parent ends its processes
    try:
        launch.end_cleanly()
        threading.Thread(target=_follow_parent, daemon=True).start()
        log_to_console()
        while True:
            work, item = pipe.recv()
            try:
                work(recipe, item)
            except Exception as error:
                pipe.send(_plain(error))
            else:
                pipe.send(None)
    except (EOFError, BrokenPipeError):  # the parent is gone
        return
    except launch.Terminated as ended:
        sys.exit(ended.status)


def _plain(error: Exception) -> Exception:
    """The error in a class that the parent can unpickle; unexpected ones are logged with their traceback."""
    kind = next((kind for kind in KNOWN if isinstance(error, kind)), None)
    if kind is None or os.environ.get("DISTILL_TRACEBACK"):
        log.exception("in process %d", os.getpid())
    return kind(str(error)) if kind else RuntimeError(f"{type(error).__name__}: {error}")


def _follow_parent() -> None:
    """End this process soon after its parent, which may be gone already."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)
