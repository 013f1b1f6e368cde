"""Part of stages 7, 10 and 11: items of work shared by the ranks of a launcher, else by processes on a CPU."""

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

log = logging.getLogger("side_by_side")
Item = TypeVar("Item")
Phase = tuple[Callable[[Recipe, Any], None], Sequence[Any]]  # work, and the items that it is done for
GRACE = 10.0  # seconds in which a process that was asked to end may remove its temporary files
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
    """Call the work of every phase once for each of its items, a phase after the one before it.

    Under a launcher each rank takes every world-th of the items that the first rank gives. Else, on a CPU, up to --nj
    processes take the next item as they become free (long ones should stand first); on a GPU this process takes all.
    Processes, as threads of one wait for each other. Raises the first error of an item, RuntimeError for a process
    that was killed.
    """
    most = max(len(items) for _, items in phases)
    if not isinstance(ranks, Alone):
        for work, items in phases:
            for item in ranks.mine(ranks.share(items)):
                work(recipe, item)
            ranks.wait()
    elif recipe.device != "cpu" or min(recipe.nj, most) <= 1:
        for work, items in phases:
            for item in items:
                work(recipe, item)
    else:
        processes = min(recipe.nj, most)
        _spread(replace(recipe, nj=recipe.nj // processes), phases, processes)


def stages_of(*phases: Sequence[tuple[Item, Sequence[Stage]]]) -> list[Stage]:
    """The stages of all items of some phases."""
    return [stage for items in phases for _, stages in items for stage in stages]


def unfinished(items: Iterable[tuple[Item, Sequence[Stage]]]) -> list[Item]:
    """The items of which a stage has something to do, so that no process is started for nothing."""
    found = []
    for item, stages in items:
        if not all(stage.up_to_date() for stage in stages):
            found.append(item)
            continue
        for stage in stages:
            stage.tidy()
            log.info("stage %d: up to date (%s)", stage.number, stage.out)
    return found


class Process(NamedTuple):
    """A process that works on one item after another, and the pipe that they are sent through."""

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
                    with contextlib.suppress(BrokenPipeError):  # of a process that is gone: seen below
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
        raise RuntimeError(
            f"process {finished.process.pid} ended before its work was done, {_reason(finished.process.exitcode or 0)};"
            " the same command continues where it stopped"
        ) from None
    if error is not None:
        raise error


def _reason(exit_code: int) -> str:
    if exit_code == -signal.SIGKILL:
        return "by signal SIGKILL (did memory run out? fewer processes, --nj, need less)"
    return f"by signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"with exit status {exit_code}"


@contextlib.contextmanager
def _processes(recipe: Recipe, count: int) -> Iterator[list[Process]]:
    """`count` processes that wait for items; none of them outlives the block."""
    context = multiprocessing.get_context("spawn")  # a fork of threads that hold locks may wait for ever
    started: list[Process] = []
    try:
        with _environment("OMP_NUM_THREADS", str(recipe.nj)):  # libraries read it when they are loaded
            for _ in range(count):
                here, there = context.Pipe()
                process = context.Process(target=_serve, args=(recipe, there), daemon=True)
                process.start()
                there.close()  # so that the end of the process is the end of the pipe
                started.append(Process(process, here))
        yield list(started)
    finally:
        _end(started)


def _end(started: Sequence[Process]) -> None:
    for each in started:
        each.process.terminate()
    for each in started:
        each.process.join(GRACE)
        each.process.kill()
        each.process.join()
        each.pipe.close()


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _serve(recipe: Recipe, pipe: Connection) -> None:
    """What a process does: work on the items that come, and answer with None or the error of each."""
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
    """An error that another process can read; where it was is logged if that is asked for, or it is unexpected."""
    kind = next((kind for kind in KNOWN if isinstance(error, kind)), None)
    if kind is None or os.environ.get("DISTILL_TRACEBACK"):
        log.exception("in process %d", os.getpid())
    return kind(str(error)) if kind else RuntimeError(f"{type(error).__name__}: {error}")


def _follow_parent() -> None:
    """End this process soon after its parent, however and whenever that ended: it may be gone already."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)
