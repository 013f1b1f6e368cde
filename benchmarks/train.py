"""Speed of training on a CPU: N threads in one process against N processes of one thread.

    python -m benchmarks.train --data-dir DIR --exp-dir DIR [--nj 2] [--seconds 25] [--names teacher,sn] [--json FILE]

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
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.measure import busy
from benchmarks.table import Row, above_zero, finish, parser
from distill.batch import BEGIN
from distill.recipe.script import run_script

ROOT = Path(__file__).resolve().parents[1]
CUTS = 120
LONGEST_START = 180.0  # seconds
LAST = max(os.sched_getaffinity(0))
SITUATIONS: dict[str, list[int | None]] = {
    "nothing": [],
    "a busy process": [None],
    "a busy process with a core of its own": [LAST],
}
GOALS = {"nothing": 1.1, "a busy process": 2.0, "a busy process with a core of its own": 8.0}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data-dir", type=Path, required=True)
    options.add_argument("--exp-dir", type=Path, required=True)
    options.add_argument("--nj", type=int, default=len(os.sched_getaffinity(0)), help="threads, or processes")
    options.add_argument("--seconds", type=above_zero(float), default=25.0, help="of each measurement")
    options.add_argument("--names", default="teacher,sn", help="experiments in egs/librispeech/conf/mini")
    options.add_argument("--train", default="", help=argparse.SUPPRESS)  # what the started processes do
    args = options.parse_args()
    if args.train:
        train(args)
        return
    command = f"python -m benchmarks.train --data-dir DIR --exp-dir DIR --nj {args.nj} --seconds {args.seconds:g}"
    finish(all_rows(args), args.json, command, goals=goals)


def all_rows(args: argparse.Namespace) -> Iterator[Row]:
    for name in args.names.split(","):
        speeds = {ranks: list(measured(args, name, ranks)) for ranks in (1, args.nj)}
        for beside, one, several in zip(SITUATIONS, speeds[1], speeds[args.nj]):
            row = {"case": name, "beside": beside}
            yield {**row, "engine": f"{args.nj} threads", "audio_seconds_per_second": one}
            speed = {"audio_seconds_per_second": several, "speed_ratio": several / one}
            yield {**row, "engine": f"{args.nj} processes", **speed}


def goals(rows: Sequence[Row]) -> Iterator[Row]:
    for row in rows:
        if ratio := row.get("speed_ratio"):
            least = GOALS[row["beside"]]
            goal = f"{row['case']} beside {row['beside']}: at least {least} x the speed of threads"
            yield {"goal": goal, "got": round(ratio, 2), "met": ratio >= least}


def measured(args: argparse.Namespace, name: str, ranks: int) -> Iterator[float]:
    """Seconds of audio per second in each situation, of a training that runs through all of them."""
    with contextlib.closing(Training(args, name, ranks)) as training:
        training.wait_for(2, LONGEST_START)
        for cores in SITUATIONS.values():
            with busy(cores):
                time.sleep(2)  # until the system has moved the processes to their cores
                first = len(training.stamps)
                time.sleep(args.seconds)
                training.wait_for(first + 2, 20 * args.seconds)
                (begun, before), (ended, after) = training.stamps[first], training.stamps[-1]
            yield (after - before) / (ended - begun)


class Training:
    """A training in processes of its own; `stamps` grows by (time, seconds of audio so far) with each update."""

    def __init__(self, args: argparse.Namespace, name: str, ranks: int) -> None:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        folders = ["--data-dir", str(args.data_dir.resolve()), "--exp-dir", str(args.exp_dir.resolve())]
        command = [sys.executable, *launcher, "-m", "benchmarks.train", *folders, "--nj", str(args.nj)]
        threads = {"OMP_NUM_THREADS": str(args.nj // ranks), "GOMP_SPINCOUNT": "200000"}
        self.stamps: list[tuple[float, float]] = []
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # shown only where it fails: torchrun's end is noisy
        self.process = subprocess.Popen(
            [*command, "--train", name], stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env={**os.environ, **threads, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for(self, count: int, seconds: float) -> None:
        """Until there are so many stamps; raises RuntimeError where they do not come."""
        end = time.monotonic() + seconds
        while len(self.stamps) < count:
            if time.monotonic() > end or self.process.poll() is not None:
                self.errors.seek(0)
                raise RuntimeError(f"no training within {seconds:g} s: {self.errors.read()[-3000:]}")
            time.sleep(0.1)

    def close(self) -> None:
        """End it; torchrun ends the processes that it started."""
        self.process.terminate()
        self.process.wait()
        self.errors.close()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            moment, audio = line.split()
            self.stamps.append((float(moment), float(audio)))


def train(args: argparse.Namespace) -> None:
    """Train until killed, on a part of the cuts; the first rank prints a line for each update after the first epoch."""
    import torch

    from distill.config.experiment import Experiment
    from distill.corpora.cut_sets import each_cut, write_cuts
    from distill.recipe import launch
    from distill.train.distributed import join
    from distill.train.setup import Folders, build_trainer

    ranks, device = join("cpu")
    torch.set_num_threads(launch.threads(args.nj))
    experiment = Experiment.load(ROOT / f"egs/librispeech/conf/mini/{args.train}.yaml", ("data.short_first=false",))
    data = args.data_dir
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder, "data")
        (own / "cuts").mkdir(parents=True)
        (own / "num").symlink_to(data.resolve() / "num")
        (own / "targets").symlink_to(data.resolve() / "targets")
        for part, count in {**dict.fromkeys(experiment.data.train, CUTS), experiment.data.valid: None}.items():
            write_cuts(itertools.islice(each_cut(data / "cuts", [part]), count), own / f"cuts/{part}.jsonl.gz")
        folders = Folders(own, data / "lang_phones", data / "graphs", args.exp_dir)
        trainer = build_trainer(experiment, folders, Path(folder), "native", ranks, device)
        for epoch in itertools.count():
            for batch in trainer.plan.batches(epoch, BEGIN):
                trainer._update([batch], experiment.optim.lr)
                trainer.progress.updates += 1
                if ranks.first and epoch:
                    print(time.monotonic(), trainer.progress.audio_seconds, flush=True)


if __name__ == "__main__":
    run_script(main)
