"""Several processes of one script: all of them, none left over, and one message."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.recipe import launch
from distill.train.stopping import exit_status
from tests.support.processes import gone

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from distill.recipe import launch
from distill.recipe.options import recipe_from, recipe_parser
from distill.recipe.script import log_to_console, run_script
from distill.recipe.stage import Stage, relaunched, run_stage

def main():
    parser = recipe_parser("test")
    parser.add_argument("--do", default="")
    args = parser.parse_args()
    recipe = recipe_from(args)
    out = Path(args.exp_dir)
    stage = Stage(6, out / "teacher", {}, {}, resumable=True)
    if relaunched(recipe, [stage]):
        print("parent goes on")
        return
    seen = [os.getpid(), recipe.threads, os.environ["OMP_NUM_THREADS"]]
    (out / f"rank-{os.environ.get('RANK')}").write_text(" ".join(map(str, seen)))
    exec(args.do)
    if launch.rank() == 0:
        run_stage(stage, lambda folder: None)

run_script(main)
"""
WAIT = "time.sleep(60)"
TORCHRUN = "torchrun --standalone --nproc-per-node"


@pytest.fixture
def start(tmp_path: Path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "exp").mkdir()

    def call(*options: str) -> subprocess.Popen:
        folders = [f"--{name}-dir={tmp_path / name}" for name in ("conf", "data", "exp")]
        command = [sys.executable, str(tmp_path / "script.py"), "--corpus", "own", *folders, *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return call


def wait_for(*paths: Path) -> list[int]:
    """The numbers of the processes that have written the files."""
    end = time.monotonic() + 60
    while not all(path.is_file() and path.read_text() for path in paths) and time.monotonic() < end:
        time.sleep(0.05)
    return [int(path.read_text().split()[0]) for path in paths]


def test_a_cpu_has_nj_processes_of_one_thread(start, tmp_path: Path) -> None:
    output, _ = start("--nj", "3").communicate(timeout=60)
    found = [(tmp_path / f"exp/rank-{n}").read_text().split() for n in range(3)]
    assert len({pid for pid, _, _ in found}) == 3
    assert all((threads, omp) == ("1", "1") for _, threads, omp in found)
    assert "parent goes on" in output and (tmp_path / "exp/teacher/.done").is_file()


def test_what_is_done_starts_no_process(start, tmp_path: Path) -> None:
    start("--nj", "1").communicate(timeout=60)
    output, _ = start("--nj", "2").communicate(timeout=60)
    assert "up to date" in output and not (tmp_path / "exp/rank-0").exists()


HANG = """
from distill.train import distributed
distributed.ROLL_CALL = 2.0
ranks, _ = distributed.join('cpu')
if launch.rank():
    os.kill(os.getpid(), signal.SIGSTOP)
ranks.wait()
"""


def test_a_rank_that_hangs_ends_the_job_and_is_named(start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_TIMEOUT", "4")
    failing = start("--nj", "2", "--do", HANG)
    output, _ = failing.communicate(timeout=120)
    assert failing.returncode == 1 and "Traceback" not in output
    assert re.search(r"E rank 0 of 2: no answer from rank 1, .* 4 s for it \(DISTILL_TIMEOUT\); the same", output), (
        output
    )
    assert all(map(gone, wait_for(tmp_path / "exp/rank-0", tmp_path / "exp/rank-1")))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_no_process_outlives_a_signal(start, tmp_path: Path, number: int) -> None:
    parent = start("--nj", "2", "--do", WAIT)
    ranks = wait_for(tmp_path / "exp/rank-0", tmp_path / "exp/rank-1")
    parent.send_signal(number)
    output, _ = parent.communicate(timeout=30)
    assert parent.returncode == exit_status(number) and "Traceback" not in output
    assert all(map(gone, ranks))


@pytest.mark.skipif(sys.platform != "linux", reason="only there torchrun's ranks are found")
@pytest.mark.parametrize("receiver", ["the script", "a rank"])
def test_ranks_of_torchrun_end_by_themselves_before_the_time_limit(start, tmp_path: Path, receiver: str) -> None:
    saving = "    time.sleep(1)\n    (out / f'saved-{launch.rank()}').touch()\n    raise"
    parent = start("--launcher", f"{TORCHRUN} 2", "--do", f"try:\n    {WAIT}\nexcept KeyboardInterrupt:\n{saving}")
    ranks = wait_for(tmp_path / "exp/rank-0", tmp_path / "exp/rank-1")
    for pid in [parent.pid] if receiver == "the script" else ranks:
        os.kill(pid, signal.SIGUSR1)
    output, _ = parent.communicate(timeout=60)
    assert parent.returncode == os.EX_TEMPFAIL and "Traceback" not in output, output
    assert all(map(gone, ranks)) and all((tmp_path / f"exp/saved-{n}").exists() for n in range(2))


@pytest.mark.skipif(sys.platform != "linux", reason="only there the system ends them")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_the_very_end_leaves_no_trace(start, number: int) -> None:
    at_exit = f"import atexit; atexit.register(lambda: os.kill(os.getpid(), {int(number)}))"
    process = start("--nj", "1", "--do", at_exit)
    assert (process.communicate(timeout=60)[0], process.returncode) == ("", -number)


def test_no_process_outlives_a_killed_parent(start, tmp_path: Path) -> None:
    parent = start("--nj", "2", "--do", WAIT)
    ranks = wait_for(tmp_path / "exp/rank-0", tmp_path / "exp/rank-1")
    parent.kill()
    parent.communicate(timeout=30)
    assert all(map(gone, ranks))


def test_an_error_ends_all_and_is_given_once(start, tmp_path: Path) -> None:
    failing = start("--nj", "2", "--do", 'raise ValueError("bad lexicon")')
    output, _ = failing.communicate(timeout=60)
    assert failing.returncode == 1 and output.count("bad lexicon") == 1 and "Traceback" not in output


def test_each_rank_has_a_log_that_grows(start, tmp_path: Path) -> None:
    work = "from distill.recipe.script import log_to, log\nwith log_to(out):\n    log.info('at work')\n"
    both = "    while any(p.read_text().count(': at work\\n') < 2 for p in out.glob('log/*.log')): time.sleep(0.05)\n"
    for end in ("", both + "    raise ValueError('bad lexicon')"):
        output, _ = start("--nj", "2", "--do", work + end).communicate(timeout=60)
        assert output.count("I at work") == 1, output  # on the console from the first rank alone
        (tmp_path / "exp/teacher/.done").unlink(missing_ok=True)
    logs = [(tmp_path / f"exp/log/train-{n}.log").read_text() for n in range(2)]
    for number, text in enumerate(logs):
        line = rf"^20\d\d-\d\d-\d\d \S+ I {re.escape(socket.gethostname())} \d+ \S+: at work$"
        assert len(re.findall(line, text, re.M)) == 2 and text.count(f"rank {number} of 2: ") == 2
    assert "E " in logs[0] and "bad lexicon" in logs[0]


def test_an_error_of_one_ends_those_that_wait(start, tmp_path: Path) -> None:
    begun = time.monotonic()
    failing = start("--nj", "2", "--do", 'if launch.rank(): raise ValueError("bad")\n' + WAIT)
    output, _ = failing.communicate(timeout=60)
    assert failing.returncode == 1 and "E bad" in output and time.monotonic() - begun < 40


def test_a_killed_process_is_named(start, tmp_path: Path) -> None:
    both = "while not (out / 'rank-0').exists(): time.sleep(0.05)"
    failing = start("--nj", "2", "--do", f"if launch.rank():\n    {both}\n    os.kill(os.getpid(), 9)\n{WAIT}")
    output, _ = failing.communicate(timeout=60)
    assert failing.returncode == 137 and "process 1 of 2 was ended by SIGKILL" in output
    assert all(map(gone, wait_for(tmp_path / "exp/rank-0")))


def test_a_launcher_starts_the_script(start, tmp_path: Path) -> None:
    output, _ = start("--launcher", "env RANK=0 LOCAL_WORLD_SIZE=2", "--nj", "4").communicate(timeout=60)
    assert (tmp_path / "exp/rank-0").read_text().split()[1:] == ["2", "2"], output


@pytest.mark.parametrize(
    ("launcher", "message"),
    [("no-such-program -n 2", "no program 'no-such-program'"), ("env X=1", "expected it to set RANK")],
)
def test_a_launcher_that_cannot_be_used(start, launcher: str, message: str) -> None:
    failing = start("--launcher", launcher)
    output, _ = failing.communicate(timeout=60)
    assert failing.returncode == 1 and message in output and "Traceback" not in output


def test_torchrun_gives_no_traceback_of_its_own(start, tmp_path: Path) -> None:
    failing = start("--launcher", f"{TORCHRUN} 1", "--do", 'raise ValueError("bad lexicon")')
    output, _ = failing.communicate(timeout=120)
    assert failing.returncode == 1 and output.count("bad lexicon") == 1
    assert "Traceback" not in output and "elastic" not in output
    assert os.path.exists(tmp_path / "exp/rank-0")


def test_threads_are_shared_by_the_ranks_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for world, expected in {"1": 4, "2": 2, "3": 1, "8": 1}.items():
        monkeypatch.setenv("LOCAL_WORLD_SIZE", world)
        assert launch.threads(4) == expected
