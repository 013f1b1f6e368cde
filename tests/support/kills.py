"""kill -9 at random moments of a stage script, the same command again, and what must be equal afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
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


def finish(command: list[str], seconds: float = 600) -> str:
    """Run to the end; returns what was printed."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, env=environment()
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def killed_after(command: list[str], seconds: float) -> bool:
    """kill -9 the command and its children after some seconds; False where it had ended by itself."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=environment()
    )
    try:
        status = process.wait(seconds)
        assert status == 0, f"exit status {status}"
        return False
    except subprocess.TimeoutExpired:
        return True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def kill_until_done(command: list[str], draw: random.Random, longest: float, kills: int) -> int:
    """Kill the command at random moments, again and again, until it is through or has been killed so often.

    Its first third, in which libraries are imported, is left alone: nothing is written in it.
    """
    for count in range(kills):
        if not killed_after(command, draw.uniform(0.3 * longest, longest)):
            return count
    return kills


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
