"""Several processes for one stage: by a launcher such as torchrun, or one per CPU core.

As a program (`python -m distill.recipe.launch ARGUMENTS`) it is torchrun without the launcher's own traceback after a
failure, as the failed process has logged its error, and it sends SIGUSR1 on to its ranks.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from distill.train.stopping import exit_status

log = logging.getLogger(__name__)
LAUNCHED = "DISTILL_LAUNCHED"
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # SIGUSR1: Slurm's warning before the time limit
GRACE = 20.0  # seconds for the others to end by themselves once one has failed
TORCHRUN = re.compile(r"torchrun|torch\.distributed\.(run|launch)|accelerate")


class Terminated(KeyboardInterrupt):
    """SIGTERM, SIGHUP or SIGUSR1, as an exception, so that locks and temporary files go; `status`: of the process."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = exit_status(number)
        self.passed_on = signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM


def end_cleanly() -> None:
    """Raise `Terminated` at the first of ENDING; end with the parent process."""

    own = os.getpid()

    def terminate(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a fork of this process, such as one that loads data
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        signal.signal(number, signal.SIG_IGN)
        raise Terminated(number)

    for number in ENDING:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, terminate)
    if "RECIPE_COMMAND" in os.environ or "RANK" in os.environ:
        follow_parent()


def ending() -> None:
    """Undo `end_cleanly`: an exception during interpreter shutdown would print a traceback."""
    for number in ENDING:
        if getattr(signal.getsignal(number), "__module__", "") == __name__:
            signal.signal(number, signal.SIG_DFL)


def follow_parent() -> None:
    """Send SIGTERM to this process when its parent ends, in whatever way; on Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def rank() -> int:
    """This process's rank, 0 without others."""
    return int(os.environ.get("RANK", 0))


def threads(jobs: int) -> int:
    """Threads of this process: its share of `jobs` among the ranks of this machine."""
    return max(1, jobs // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def another_ended(error: BaseException) -> bool:
    """True for an error caused by the end of another rank."""
    if "RANK" not in os.environ or not isinstance(error, RuntimeError):
        return False
    from distill.train.distributed import PEER_GONE  # torch is loaded where ranks work together

    return bool(PEER_GONE.search(str(error)))


def by_launcher(launcher: str, more: Sequence[str] = ()) -> int:
    """Run this script by a launcher that sets RANK, WORLD_SIZE and so on, as torchrun does; its exit status.

    more: options beside those of this process. Raises as `command_of`.
    """
    words = command_of(launcher)
    script = sys.argv if TORCHRUN.search(launcher) else [sys.executable, *sys.argv]
    return _run([[*words, *script, *more]], [os.environ | {LAUNCHED: "1"}])


def command_of(launcher: str) -> list[str]:
    """Program and arguments of a launcher, looked up beside this Python first.

    Raises ValueError for what no shell would read, FileNotFoundError for a program that is not there.
    """
    try:
        words = [word for part in shlex.split(launcher) for word in _program(part)]
    except ValueError as error:
        raise ValueError(f"--launcher {launcher}: {str(error).lower()}; expected a command, e.g. torchrun") from None
    if not words or not shutil.which(words[0]):
        raise FileNotFoundError(f"--launcher {launcher}: no program {''.join(words[:1])!r}; expected e.g. torchrun")
    return words


def _program(word: str) -> list[str]:
    if word == "torchrun":
        return [sys.executable, "-m", "distill.recipe.launch"]
    beside = Path(sys.executable).parent / word
    return [str(beside)] if "/" not in word and word and beside.is_file() else [word]


def by_count(count: int, more: Sequence[str] = ()) -> int:
    """Run this script in `count` processes of one thread on this machine; the exit status of the first that fails."""
    with socket.socket() as reserved:  # bound, not listening: nobody else gets the port until rank 0 listens there
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        common = {
            LAUNCHED: "1", "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(reserved.getsockname()[1]),
            "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
        }  # fmt: skip
        environments = [os.environ | common | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(count)]
        return _run([[sys.executable, *sys.argv, *more]] * count, environments)


def _run(commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]) -> int:
    """Run commands side by side until all have ended, or one has failed and the others were stopped."""
    with _stopped_at_the_end() as children:
        for command, environment in zip(commands, environments):
            children.append(subprocess.Popen(command, env=environment))
        while None in (states := [child.poll() for child in children]) and not any(states):
            time.sleep(0.05)
    failed = next(((n, state) for n, state in enumerate(states) if state), None)
    if failed and failed[1] < 0:
        log.error(
            "process %d of %d was ended by %s; the same command continues where it stopped",
            failed[0], len(states), _named(-failed[1]),
        )  # fmt: skip
        return exit_status(-failed[1])
    return failed[1] if failed else 0


def _named(number: int) -> str:
    """A signal with what it may mean."""
    waited = f"did it wait {os.environ.get('DISTILL_TIMEOUT', 'half an hour')} (DISTILL_TIMEOUT) for a rank that hangs?"
    hint = {signal.SIGKILL: " (out of memory?)", signal.SIGABRT: f" ({waited})"}
    return signal.Signals(number).name + hint.get(signal.Signals(number), "")


@contextlib.contextmanager
def _stopped_at_the_end() -> Iterator[list[subprocess.Popen]]:
    """A list of processes, none of which outlives the block; an interruption is forwarded and waited for."""
    children: list[subprocess.Popen] = []
    grace: float | None = GRACE
    number = signal.SIGTERM
    try:
        yield children
    except KeyboardInterrupt as interruption:
        grace = None  # a checkpoint may be large
        if isinstance(interruption, Terminated):
            number = interruption.passed_on
        else:
            _wait(children, 2.0)  # Ctrl-C has reached them too
        raise
    finally:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)
        _wait(children, grace)
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait()


def _wait(children: Sequence[subprocess.Popen], seconds: float | None) -> None:
    end = time.monotonic() + (seconds or 0.0)
    while any(child.poll() is None for child in children) and (seconds is None or time.monotonic() < end):
        time.sleep(0.05)


def main() -> None:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    def pass_on(number: int, frame: FrameType | None) -> None:
        for children in Path("/proc/self/task").glob("*/children"):
            for child in children.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), number)

    signal.signal(signal.SIGUSR1, pass_on)  # for torchrun's other signals the ranks have 30 s, too few for a checkpoint
    logging.basicConfig(format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S")
    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        run.run(run.parse_args(sys.argv[1:]))
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        code = failure.exitcode
        if code < 0:
            log.error("process %d was ended by %s; all have stopped", number, _named(-code))
        sys.exit(code if code > 0 else exit_status(-code))
    except SignalException as error:
        sys.exit(128 + int(error.sigval))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
