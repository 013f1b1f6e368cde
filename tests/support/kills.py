"""kill -9 at random moments of a stage script, the same command again, and what must be equal afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.training import assert_same_training

ROOT = Path(__file__).resolve().parents[2]
LOSSES = ("updates", "audio_hours", "train_loss", "valid_loss", "without_path", "recomputed", "params")


def train_command(data: Path, exp: Path, *settings: str) -> list[str]:
    """Stage 6 of a rehearsal as run.sh starts it."""
    options = {
        "corpus": "librispeech", "conf-dir": ROOT / "egs/librispeech/conf/mini", "data-dir": data, "exp-dir": exp,
        "experiment": "teacher", "nj": 1, "rehearse": "true", "stage": 6,
    }  # fmt: skip
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    sets = [text for setting in settings for text in ("--set", setting)]
    return [sys.executable, str(ROOT / "local/train.py"), *flags, *sets]


def finish(command: list[str], begun: str = "") -> float:
    """Run to the end; returns the seconds since it printed `begun`."""
    seconds = until_end(command, 600, begun)
    assert seconds is not None, f"not ended within 600 s: {command}"
    return seconds


def until_end(command: list[str], most: float, begun: str = "") -> float | None:
    """Seconds from when the command printed `begun` to its end; kill -9 it and its children after `most`, then None."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment()
        )
        try:
            while process.poll() is None and begun.encode() not in os.pread(output.fileno(), 1 << 20, 0):
                time.sleep(0.01)
            start = time.monotonic()
            status = process.wait(most)
            assert status == 0, os.pread(output.fileno(), 1 << 20, 0)[-3000:].decode()
            return time.monotonic() - start
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def kill_until_done(
    command: list[str], draw: random.Random, longest: float, kills: int, begun: str = "", spared: float = 0.3
) -> int:
    """Kill the command at random moments, again and again, until it is through or has been killed so often.

    spared: the share of its time, counted from when it has printed `begun`, in which it is left alone: for a training
    the first third, in which libraries are imported and nothing is written.
    """
    for count in range(kills):
        if until_end(command, draw.uniform(spared * longest, longest), begun) is not None:
            return count
    return kills


def stage_command(stage: int, root: Path, *options: str) -> list[str]:
    """One stage of a rehearsal in root/data and root/exp."""
    folders = ["--data-dir", str(root / "data"), "--exp-dir", str(root / "exp")]
    numbers = ["--stage", str(stage), "--stop-stage", str(stage)]
    return [str(ROOT / "egs/librispeech/run.sh"), "--rehearse", "true", "--nj", "1", *folders, *numbers, *options]


def assert_same_experiment(left: Path, right: Path) -> None:
    """The same files, tensors, progress and losses."""
    names = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if "tensorboard" not in path.parts}
        for folder in (left, right)
    ]
    assert names[0] == names[1] and not any(name.endswith(".tmp") for name in names[0])
    assert_same_training(left, right)
    results = [json.loads((folder / "result.json").read_text()) for folder in (left, right)]
    assert {key: results[0][key] for key in LOSSES} == {key: results[1][key] for key in LOSSES}


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
