"""Items of work of stages 7, 10 and 11, shared by the ranks of a launcher, or by processes on a CPU."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, TypeVar

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
STOPPED = (0, None, -signal.SIGTERM, 128 + signal.SIGTERM)  # exit codes of processes that were not the cause
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


def _spread(recipe: Recipe, phases: Sequence[Phase], count: int) -> None:
    """`each` in `count` processes, none of which outlives the call."""
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin)  # a fork may inherit locked locks
    threads, children, broken = os.environ["OMP_NUM_THREADS"], set[BaseProcess](), False
    os.environ["OMP_NUM_THREADS"] = str(recipe.nj)  # libraries read it when they are loaded
    try:
        for work, items in phases:
            futures = [pool.submit(_work, work, recipe, item) for item in items]
            children.update(multiprocessing.active_children())
            for future in as_completed(futures):
                future.result()
    except BrokenProcessPool:
        broken = True
    finally:
        os.environ["OMP_NUM_THREADS"] = threads
        for child in children:
            child.terminate()
        for child in children:
            child.join(GRACE)
            child.kill()
        pool.shutdown(cancel_futures=True)
    if broken:
        number, code = next(((c.pid, c.exitcode) for c in children if c.exitcode not in STOPPED), (None, 0))
        how = f"by signal {signal.Signals(-code).name}" if code and code < 0 else f"with exit status {code}"
        memory = " (did memory run out? fewer processes, --nj, need less)" if code == -signal.SIGKILL else ""
        raise RuntimeError(
            f"process {number} ended before its work was done, {how}{memory}; the same command continues where it"
            " stopped"
        )


def _begin() -> None:
    """The begin of a worker, which ends soon after its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the parent ends its processes
    threading.Thread(target=_follow_parent, daemon=True).start()
    log_to_console()


def _work(work: Callable[[Recipe, Any], None], recipe: Recipe, item: Any) -> None:
    """An item's work. Raises errors of classes that can be unpickled; others are logged with their traceback."""
    launch.end_cleanly()
    try:
        work(recipe, item)
    except launch.Terminated as ended:
        os._exit(ended.status)  # as an exception it would be a result, and the process would go on
    except Exception as error:
        kind = next((kind for kind in KNOWN if isinstance(error, kind)), None)
        if kind is None or os.environ.get("DISTILL_TRACEBACK"):
            log.exception("in process %d", os.getpid())
        raise (kind(str(error)) if kind else RuntimeError(f"{type(error).__name__}: {error}")) from None
    finally:
        launch.ending()


def _follow_parent() -> None:
    """End this process soon after its parent, which may be gone already."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)
