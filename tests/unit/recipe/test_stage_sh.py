"""run.sh and signals: what runs is asked to end, waited for, and does not outlive it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.train.stopping import exit_status
from tests.support.processes import gone

ROOT = Path(__file__).resolve().parents[3]
RUN = """#!/usr/bin/env bash
set -euo pipefail
corpus=own experiments=teacher
source "$(dirname "${BASH_SOURCE[0]}")/../../local/stage.sh"
begin "$@"
run 0 "slow" slow.py
run 1 "next" slow.py
finish
"""
SLOW = """
import os, sys, time
from pathlib import Path
from distill.recipe.launch import end_cleanly
end_cleanly()
here = Path(__file__).parent
try:
    (here / "pid").write_text(str(os.getpid()))
    for _ in range(600):  # a signal just before one long sleep would be handled after it
        time.sleep(0.1)
except KeyboardInterrupt as stopped:
    time.sleep(0.5)
    (here / "checkpoint").write_text(str(stopped.status))
    sys.exit(stopped.status)
"""


@pytest.fixture
def run_sh(tmp_path: Path) -> Path:
    """A recipe of slow stages in a repository of its own."""
    for folder in ("local", ".venv/bin", "egs/own/conf"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "local/stage.sh", tmp_path / "local")
    (tmp_path / "local/environment.sh").write_text("install_environment() { :; }\n")
    (tmp_path / "local/slow.py").write_text(SLOW)
    (tmp_path / "local/check_call.py").touch()
    python = tmp_path / ".venv/bin/python"
    python.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n')
    run = tmp_path / "egs/own/run.sh"
    run.write_text(RUN)
    for path in (python, run):
        path.chmod(0o755)
    return run


def started(run: Path) -> tuple[subprocess.Popen, int]:
    """A call of run.sh and the number of the process that its stage has started."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([run], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    pid, end = run.parents[2] / "local/pid", time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    return process, int(pid.read_text())


@pytest.mark.parametrize(
    ("number", "passed_on"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 143), (signal.SIGHUP, 143), (signal.SIGUSR1, os.EX_TEMPFAIL)],
)
def test_a_signal_ends_the_stage_that_runs(run_sh: Path, number: int, passed_on: int) -> None:
    process, child = started(run_sh)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == exit_status(number)
    assert (run_sh.parents[2] / "local/checkpoint").read_text() == str(passed_on)
    assert gone(child) and (run_sh.parents[2] / "local/checkpoint").exists()
    assert "the same command continues where it stopped" in output and "stage 1" not in output


def test_a_signal_right_after_the_start_of_a_stage_ends_it(run_sh: Path) -> None:
    trap = "set -T; trap '[[ -z $(jobs -rp) ]] || { trap - DEBUG; kill -INT $$; }' DEBUG"  # before each command
    run_sh.write_text(RUN.replace("run 0", f"{trap}\nrun 0"))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([run_sh], capture_output=True, text=True, env=environment, timeout=30)  # until pipes close
    assert done.returncode == 130 and "interrupted; the same command continues" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stage_that_ends_by_itself_ends_the_recipe(run_sh: Path, number: int) -> None:
    process, child = started(run_sh)
    os.kill(child, number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == exit_status(number) and "stage 1" not in output


@pytest.mark.skipif(sys.platform != "linux", reason="only there the system ends it")
def test_a_stage_does_not_outlive_a_killed_recipe(run_sh: Path) -> None:
    process, child = started(run_sh)
    process.kill()
    process.communicate(timeout=30)
    assert gone(child)
