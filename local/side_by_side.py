"""Part of stages 10 and 11: experiments side by side, each in a process with its share of the threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

from distill.stages import Recipe, log_to_console


def each(recipe: Recipe, work: Callable[[Recipe, str], None]) -> None:
    """work(recipe, name) for every experiment: on a CPU in up to --nj processes, elsewhere one after another.

    Threads of one process share Python's lock and wait for what is serial; processes do not. The first error is
    raised here, after the experiments that were begun.
    """
    processes = min(recipe.nj, len(recipe.names)) if recipe.device == "cpu" else 1
    if processes <= 1:
        for name in recipe.names:
            work(recipe, name)
        return
    share = replace(recipe, nj=recipe.nj // processes)
    context = multiprocessing.get_context("spawn")  # a fork of threads that hold locks may wait for ever
    with ProcessPoolExecutor(processes, context, _begin, (share.nj,)) as pool:
        futures = [pool.submit(work, share, name) for name in recipe.names]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all: the parent tells of it
    os.environ["OMP_NUM_THREADS"] = str(threads)
    log_to_console()
