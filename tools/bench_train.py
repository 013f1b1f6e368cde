"""Speed of training on a CPU: N threads in one process against N processes of one thread.

    bench_train.py --data-dir DIR --exp-dir DIR [--nj 2] [--seconds 25] [--names teacher,sn] [--json FILE]

The folders are those of the mini recipe (egs/librispeech/run.sh --mini true), whole or up to stage 7. Seconds of audio
that are trained on per second: alone, beside a process that is always busy, and beside one that keeps a core for
itself. A part of the training set is trained on; its first epoch, in which audio is read and the teacher's targets
are computed, is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench_measure import write_json

from distill.stages import run_script

ROOT = Path(__file__).resolve().parents[1]
CUTS = 120
LONGEST_START = 180.0  # seconds
SITUATIONS = {"nothing": None, "a busy process": False, "a busy process with a core of its own": True}
GOALS = {"nothing": 1.1, "a busy process": 2.0, "a busy process with a core of its own": 8.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--exp-dir", type=Path, required=True)
    parser.add_argument("--nj", type=int, default=len(os.sched_getaffinity(0)), help="threads, or processes")
    parser.add_argument("--seconds", type=float, default=25.0, help="of each measurement")
    parser.add_argument("--names", default="teacher,sn", help="experiments in egs/librispeech/conf/mini")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--train", default="", help=argparse.SUPPRESS)  # what the started processes do
    args = parser.parse_args()
    if args.train:
        train(args)
        return
    rows, goals = [], []
    for name in args.names.split(","):
        speeds = {ranks: list(measured(args, name, ranks)) for ranks in (1, args.nj)}
        for beside, one, several in zip(SITUATIONS, speeds[1], speeds[args.nj]):
            for engine, speed in ((f"{args.nj} threads", one), (f"{args.nj} processes", several)):
                rows.append({"case": name, "beside": beside, "engine": engine, "audio_seconds_per_second": speed})
            ratio = several / one
            rows[-1]["speed_ratio"] = ratio
            goal = f"{name} beside {beside}: at least {GOALS[beside]} x the speed of threads"
            goals.append({"goal": goal, "got": round(ratio, 2), "met": ratio >= GOALS[beside]})
            print(f"{name} beside {beside}: {one:.1f} with threads, {several:.1f} with processes", flush=True)
    if args.json:
        write_json(args.json, {**about(args), "goals": goals, "rows": rows})


def about(args: argparse.Namespace) -> dict[str, str]:
    import torch

    from distill.train.monitor import commit, hardware

    command = f"tools/bench_train.py --data-dir DIR --exp-dir DIR --nj {args.nj} --seconds {args.seconds:g}"
    return {"hardware": hardware(torch.device("cpu")), "commit": commit(), "command": command}


def measured(args: argparse.Namespace, name: str, ranks: int) -> Iterator[float]:
    """Seconds of audio per second in each situation, of a training that runs through all of them."""
    with started(args, name, ranks) as stamps:
        wait_for(stamps, 2, LONGEST_START)
        for pinned in SITUATIONS.values():
            with busy(pinned):
                time.sleep(2)  # until the system has moved the processes to their cores
                first = len(stamps) - 1
                time.sleep(args.seconds)
                wait_for(stamps, first + 3, 20 * args.seconds)
                (begun, before), (ended, after) = stamps[first + 1], stamps[-1]
            yield (after - before) / (ended - begun)


def wait_for(stamps: list[tuple[float, float]], count: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while len(stamps) < count:
        if time.monotonic() > end:
            raise RuntimeError(f"no {count} updates within {seconds:g} s: are the folders those of the mini recipe?")
        time.sleep(0.1)


@contextlib.contextmanager
def started(args: argparse.Namespace, name: str, ranks: int) -> Iterator[list[tuple[float, float]]]:
    """A training; the list grows by (time, seconds of audio so far) after each update."""
    threads = args.nj // ranks
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    folders = ["--data-dir", str(args.data_dir.resolve()), "--exp-dir", str(args.exp_dir.resolve())]
    command = [sys.executable, *launcher, str(Path(__file__).resolve()), *folders, "--nj", str(args.nj)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "200000", "PYTHONPATH": str(ROOT)}
    errors = tempfile.TemporaryFile("w+")  # shown where it fails: torchrun also writes when it is asked to end
    process = subprocess.Popen(
        [*command, "--train", name],
        stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True, env=environment,
    )  # fmt: skip
    stamps: list[tuple[float, float]] = []

    def read() -> None:
        for line in process.stdout or ():
            moment, audio = line.split()
            stamps.append((float(moment), float(audio)))

    threading.Thread(target=read, daemon=True).start()
    try:
        yield stamps
    except RuntimeError as error:
        errors.seek(0)
        raise RuntimeError(f"{error}\n{errors.read()[-3000:]}") from None
    finally:
        process.terminate()  # torchrun ends the processes that it started
        process.wait()
        errors.close()


@contextlib.contextmanager
def busy(pinned: bool | None) -> Iterator[None]:
    """Another program at work, on the last core or wherever the system puts it; None: none."""
    if pinned is None:
        yield
        return
    core = max(os.sched_getaffinity(0))
    pin = f"import os; os.sched_setaffinity(0, {{{core}}})\n" if pinned else ""
    process = subprocess.Popen([sys.executable, "-c", f"{pin}while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def train(args: argparse.Namespace) -> None:
    """Train until killed, on a part of the cuts; the first rank prints a line for each update after the first epoch."""
    import torch

    from distill.config.experiment import Experiment
    from distill.train.distributed import join
    from distill.train.setup import Folders, build_trainer

    ranks, device = join("cpu")
    torch.set_num_threads(ranks.threads(args.nj))
    experiment = Experiment.load(ROOT / f"egs/librispeech/conf/mini/{args.train}.yaml", ("data.short_first=false",))
    data = args.data_dir
    with tempfile.TemporaryDirectory() as folder:
        folders = Folders(data, data / "lang_phones", data / "graphs", args.exp_dir)
        trainer = build_trainer(experiment, folders, Path(folder), "native", ranks, device)
        loader = trainer.batches.__self__  # type: ignore[attr-defined]
        loader.cuts = loader.cuts.subset(first=min(CUTS, len(loader.cuts)))
        for epoch in itertools.count():
            for batch in trainer.batches(epoch, 0):
                trainer._update([batch], experiment.optim.lr)
                trainer.progress.updates += 1
                if ranks.first and epoch:
                    print(time.monotonic(), trainer.progress.audio_seconds, flush=True)


if __name__ == "__main__":
    run_script(main)
