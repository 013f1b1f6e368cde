"""Items shared by processes: each once, no process left behind, and a process that is killed is an error."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.recipe.parallel import unfinished
from distill.recipe.stage import Stage, run_stage
from tests.support.processes import gone
from tests.support.tiny_recipe import ROOT

SCRIPT = """
import os, sys, time
from pathlib import Path
from distill.recipe import parallel
from distill.recipe.options import recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import Alone

OUT = Path(__file__).parent

def work(recipe, item):
    with (OUT / f"item-{item}").open("a") as file:
        file.write(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']} {recipe.nj}\\n")
    while item in ("wrong", "odd") and not (OUT / "item-long").exists():
        time.sleep(0.05)
    if item == "wrong":
        raise ValueError("item wrong: expected a right one")
    if item == "odd":
        raise ZeroDivisionError("odd")
    time.sleep(600 if item == "long" else 0.5)

def main():
    recipe = recipe_from(recipe_parser("").parse_args())
    parallel.each(recipe, Alone(), *((work, phase.split("_")) for phase in recipe.names))
    print("all done", flush=True)

if __name__ == "__main__":
    run_script(main)
"""


def start(folder: Path, phases: str) -> subprocess.Popen:
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    folders = [f"--{name}-dir={folder / name}" for name in ("conf", "data", "exp")]
    options = ["--corpus", "x", *folders, "--nj", "2"]
    return subprocess.Popen(
        [sys.executable, str(folder / "script.py"), *options, "--experiment", phases],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def worker(folder: Path, item: str) -> int:
    """The process that works on an item, once it does."""
    path, end = folder / f"item-{item}", time.monotonic() + 120
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < end, f"{item} was never begun"
        time.sleep(0.05)
    return int(path.read_text().split()[0])


def test_each_item_is_done_once_in_two_processes(tmp_path: Path) -> None:
    process = start(tmp_path, "a_b_c,d")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and "all done" in output, output
    lines = [(tmp_path / f"item-{name}").read_text().splitlines() for name in "abcd"]
    assert [len(each) for each in lines] == [1, 1, 1, 1]
    assert len({each[0].split()[0] for each in lines}) == 2
    assert {tuple(each[0].split()[1:]) for each in lines} == {("1", "1")}


@pytest.mark.parametrize(
    ("item", "message"), [("wrong", "E item wrong: expected a right one"), ("odd", "E ZeroDivisionError: odd")]
)
def test_an_error_ends_all(tmp_path: Path, item: str, message: str) -> None:
    process = start(tmp_path, f"long_{item}")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1 and message in output, output
    assert gone(worker(tmp_path, "long"), 20)


def test_a_killed_process_is_an_error_that_ends_all(tmp_path: Path) -> None:
    process = start(tmp_path, "long_a_b_c_d_e_f_g")
    killed, other = worker(tmp_path, "long"), worker(tmp_path, "a")
    os.kill(killed, signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1 and "Traceback" not in output, output
    assert f"process {killed} ended before its work was done, by signal SIGKILL (did memory run out?" in output
    assert gone(other, 20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_one_that_started_it(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "long_long")
    child = worker(tmp_path, "long")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode in (143, 130, -signal.SIGKILL) and "Traceback" not in output, output
    assert gone(child, 20)


def test_what_a_kill_left_beside_a_finished_item_is_removed(tmp_path: Path) -> None:
    stage = Stage(10, tmp_path / "decode_test", {}, {})
    run_stage(stage, lambda folder: None)
    for name in ("decode_test.old", "decode_test.tmp"):
        shutil.copytree(tmp_path / "decode_test", tmp_path / name)
    (tmp_path / "decode_test.tmp/.done").rename(tmp_path / "decode_test.tmp/.started")
    (tmp_path / "decode_test.lock").write_text("{}")
    assert unfinished([("item", [stage])]) == []
    assert [path.name for path in tmp_path.iterdir()] == ["decode_test"]
