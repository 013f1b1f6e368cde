"""Processes with locks, and those whose locks are taken over."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from distill.recipe import locks
from distill.recipe.locks import locked


def holder(**changes: object) -> dict:
    parent = os.getppid()
    found = {
        "host": socket.gethostname(),
        "pid": parent,
        "started": locks.started(parent),
        "since": "2026-01-01 00:00:00",
    }
    return found | changes


def hold(folder: Path, content: object) -> Path:
    path = folder.with_name(folder.name + ".lock")
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_lock_names_its_process_and_goes(tmp_path: Path) -> None:
    with locked(tmp_path / "lang"):
        found = json.loads((tmp_path / "lang.lock").read_text())
    assert (found["host"], found["pid"]) == (socket.gethostname(), os.getpid())
    assert found["started"] == locks.started(os.getpid()) != ""
    assert list(tmp_path.iterdir()) == []


def test_a_living_process_keeps_its_folder(tmp_path: Path) -> None:
    path = hold(tmp_path / "lang", holder())
    expected = rf"process {os.getppid()} is writing .*lang \(on .*, since 2026-01-01"
    with pytest.raises(RuntimeError, match=expected), locked(tmp_path / "lang"):
        pass
    assert path.exists()


def test_a_process_does_not_take_its_own_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "lang"):
        with pytest.raises(RuntimeError, match=f"process {os.getpid()}"), locked(tmp_path / "lang"):
            pass
        assert (tmp_path / "lang.lock").exists()


def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path: Path) -> None:
    gone = subprocess.Popen(["sleep", "60"])
    started = locks.started(gone.pid)
    gone.kill()
    time.sleep(0.2)  # not waited for: its remains are still in the table of processes
    hold(tmp_path / "lang", holder(pid=gone.pid, started=started))
    with locked(tmp_path / "lang"):
        pass
    gone.wait()
    assert not (tmp_path / "lang.lock").exists()


def test_a_process_number_that_is_used_again_locks_nothing(tmp_path: Path) -> None:
    hold(tmp_path / "lang", holder(started="another time"))
    with locked(tmp_path / "lang"):
        assert json.loads((tmp_path / "lang.lock").read_text())["pid"] == os.getpid()


def test_the_lock_of_another_host_is_never_taken_over(tmp_path: Path) -> None:
    path = hold(tmp_path / "lang", holder(host="elsewhere", pid=2**22 + 1))
    with pytest.raises(RuntimeError, match=r"on elsewhere is writing .*remove .*lang.lock"), locked(tmp_path / "lang"):
        pass
    assert json.loads(path.read_text())["host"] == "elsewhere"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"host": "x"}', "\0\0", '"x"', "1e400"])
def test_a_lock_that_was_cut_is_taken_over(tmp_path: Path, content: str) -> None:
    hold(tmp_path / "lang", content)
    with locked(tmp_path / "lang"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_locks_of_before_name_a_process(tmp_path: Path) -> None:
    hold(tmp_path / "lang", str(os.getppid()))
    with pytest.raises(RuntimeError, match=f"process {os.getppid()} is writing"), locked(tmp_path / "lang"):
        pass


def _count(folder: Path, begin, inside) -> None:
    begin.wait()
    try:
        with locked(folder):
            with inside.get_lock():
                inside.value += 1
            time.sleep(1.0)
    except RuntimeError:
        pass


def test_of_many_that_take_over_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    hold(tmp_path / "lang", holder(started="another time"))
    begin, inside = context.Barrier(8), context.Value("i", 0)
    processes = [context.Process(target=_count, args=(tmp_path / "lang", begin, inside)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert inside.value == 1
    assert list(tmp_path.iterdir()) == []


def test_without_proc_ps_gives_the_start_time() -> None:
    assert locks._started_by_ps(os.getpid()) == locks._started_by_ps(os.getpid()) != ""
    assert locks._started_by_ps(2**22 + 1) == ""
