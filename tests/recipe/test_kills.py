"""A real training, killed at random moments and continued: the same files, bit for bit.

DISTILL_KILLS=20 kills so often (in CI three times); DISTILL_SEED chooses other moments.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.kills import ROOT, assert_same_experiment, environment, finish, kill_until_done, train_command

KILLS = int(os.environ.get("DISTILL_KILLS", "3"))
SEED = int(os.environ.get("DISTILL_SEED", "11"))
SETTINGS = (
    "optim.updates=16", "saving.every_updates=4", "data.valid_utterances=4", "data.max_duration=12", "data.workers=1",
    "data.train=[labelled,unlabelled]", "model.encoder.dropout=0.1", "model.encoder.layer_drop=0.2",
)  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stages 0 to 5 of a rehearsal."""
    folder = tmp_path_factory.mktemp("prepared")
    run = [str(ROOT / "egs/librispeech/run.sh"), "--rehearse", "true", "--nj", "1", "--stop-stage", "5"]
    folders = ["--data-dir", str(folder / "data"), "--exp-dir", str(folder / "exp")]
    done = subprocess.run([*run, *folders], capture_output=True, text=True, timeout=600, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_training_killed_at_random_moments_becomes_the_unbroken_one(prepared: Path, tmp_path: Path) -> None:
    def command(name: str) -> list[str]:
        if not (tmp_path / name).exists():
            shutil.copytree(prepared / "exp", tmp_path / name)
        return train_command(prepared / "data", tmp_path / name, *SETTINGS)

    begun = time.monotonic()
    finish(command("whole"))
    longest, draw, kills = time.monotonic() - begun, random.Random(SEED), 0
    while kills < KILLS:
        name = f"killed-{kills}"
        struck = kill_until_done(command(name), draw, longest, KILLS - kills)
        finish(command(name))
        assert_same_experiment(tmp_path / "whole/teacher", tmp_path / name / "teacher")
        kills += struck
        shutil.rmtree(tmp_path / name)


def test_run_sh_ends_with_75_before_the_time_limit_and_continues(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "exp", tmp_path / "exp")
    command = [str(ROOT / "egs/librispeech/run.sh"), "--rehearse", "true", "--nj", "2", "--stage", "6", "--stop-stage"]
    command += [
        "6",
        "--experiment",
        "teacher",
        "--data-dir",
        str(prepared / "data"),
        "--exp-dir",
        str(tmp_path / "exp"),
    ]
    command += [text for setting in ("optim.updates=40", "saving.every_updates=2") for text in ("--set", setting)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment()}
    running, end = subprocess.Popen(command, **options), time.monotonic() + 300
    while not (tmp_path / "exp/teacher/last.pt").exists() and running.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    running.send_signal(signal.SIGUSR1)
    output, _ = running.communicate(timeout=120)
    assert running.returncode == os.EX_TEMPFAIL and "Traceback" not in output, output
    assert "the same command continues" in output and not (tmp_path / "exp/teacher/result.json").exists()
    done = subprocess.run(command, timeout=300, **options)
    assert done.returncode == 0 and "continuing from update " in done.stdout, done.stdout
    logs = [(tmp_path / f"exp/teacher/log/train-{rank}.log").read_text() for rank in range(2)]
    assert all(log.count(f"rank {rank} of 2: ") == 2 for rank, log in enumerate(logs))
