"""Calls that share a stage: the same files as of one call, whoever is killed, and never of two settings."""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from distill.config.job import Job, takes
from distill.corpora.shards import stored
from distill.files import own_name
from distill.recipe.locks import locked
from distill.recipe.stage import Stage, run_stage
from tests.support.corpora import write_tone
from tests.support.tiny_recipe import ROOT, Tiny, succeeded

JOB = Job(1, 2)
CALLS = ("1/4", "2/4", "3/4", "4/4")


def kill_when(process: subprocess.Popen, path: Path) -> None:
    """kill -9 the process as soon as the path exists."""
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, f"{path} was never written"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


# The stage


def refuse(folder: Path) -> None:
    raise AssertionError(f"{folder} was to be left alone")


def shard(name: str, folder: Path) -> None:
    (folder / name).write_text("made")


def stage(tmp_path: Path, setting: int = 1) -> Stage:
    return Stage(7, tmp_path / "num", {"beam": setting}, {}, resumable=True)


def test_jobs_leave_the_stage_to_the_call_without_job(tmp_path: Path) -> None:
    for name in ("1", "2"):
        run_stage(stage(tmp_path), partial(shard, name), job=Job(int(name), 2))
    own_name(tmp_path / "num/killed").touch()
    assert not stage(tmp_path).up_to_date() and [path.name for path in tmp_path.iterdir()] == ["num"]
    run_stage(stage(tmp_path), lambda folder: None)
    assert sorted(path.name for path in (tmp_path / "num").iterdir()) == [".done", ".started", "1", "2"]
    assert run_stage(stage(tmp_path), refuse, job=JOB) is False


def test_jobs_have_no_lock_of_the_stage_and_the_same_settings(tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        assert not (tmp_path / "num.lock").exists()
        shard("a", folder)
        with pytest.raises(ValueError, match=r"stage 7: .*num has unfinished work of other .*beam was 1, is 2"):
            run_stage(stage(tmp_path, 2), refuse, job=JOB)

    run_stage(stage(tmp_path), work, job=JOB)
    assert (tmp_path / "num/a").exists()


def test_a_folder_is_not_put_aside_while_jobs_work_there(tmp_path: Path) -> None:
    with ExitStack() as others:
        stage(tmp_path).begin(others, job=True)
        (tmp_path / "num/a").touch()
        run_stage(stage(tmp_path), lambda folder: None)  # completed meanwhile
        for job in (None, JOB):
            with pytest.raises(RuntimeError, match=rf"process {os.getpid()} is writing .*num"):
                run_stage(stage(tmp_path, 2), refuse, job=job)
        stage(tmp_path).discard()
        assert (tmp_path / "num/a").exists()
    run_stage(stage(tmp_path, 2), partial(shard, "b"), job=JOB)
    assert (tmp_path / "num.aside-1/a").exists() and not (tmp_path / "num/a").exists()
    stage(tmp_path).discard()
    assert [path.name for path in tmp_path.iterdir()] == ["num.aside-1"]


@pytest.mark.parametrize("asked", [{"job": JOB}, {"wait": True}])
def test_a_job_and_a_call_on_every_machine_wait_for_a_lock(
    asked: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as held, caplog.at_level(logging.INFO):
        held.enter_context(locked(tmp_path / "num"))
        timer = threading.Timer(2.5, held.pop_all().close)
        timer.start()
        run_stage(stage(tmp_path), partial(shard, "a"), **asked)
        timer.join()
    assert "waiting: process" in caplog.text and (tmp_path / "num/a").exists()


def test_shards_are_stored_shared_and_made_again_where_the_names_differ(tmp_path: Path) -> None:
    asked: list[str] = []

    def compute(names):
        asked.extend(names)
        return [len(name) for name in names]

    def values(names: str, job: Job | None = None) -> dict[str, int]:
        return dict(stored(tmp_path, names.split(), compute, job, size=2))

    assert values("a bb c dd e", JOB) == {"a": 1, "bb": 2, "e": 1}
    assert values("a bb c dd e") == {"a": 1, "bb": 2, "c": 1, "dd": 2, "e": 1}
    assert asked == ["a", "bb", "e", "c", "dd"]
    (tmp_path / "00001.json").write_text("[[")
    assert values("a bb x dd e")["x"] == 1 and asked[5:] == ["x", "dd"]
    assert [shard for shard in range(7) if takes(Job(2, 3), shard)] == [1, 4]


# Stage 0


def prepare(root: Path, name: str, *options: str) -> subprocess.Popen:
    """Stage 0 of a corpus of one's own, in shards of two recordings."""
    folders = [f"--{kind}-dir={root / kind}" for kind in ("conf", "exp", "corpus")]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "local/prepare_corpus.py"), "--corpus", "mine", *folders, "--nj", "1",
         f"--data-dir={root / name}", "--allow-commands", "true", "--units", "chars", *options],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{root / 'conf'}"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def of_stage_0(folder: Path) -> dict[str, bytes]:
    """The files, unpacked: gzip stores times."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {
        name: gzip.decompress(data) if name.endswith(".gz") else data
        for name, data in files.items()
        if not name.endswith(".done")
    }


def test_stage_0_by_jobs_one_of_them_killed(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    patch = "from distill.corpora import manifests; manifests.SHARD = 2"
    (tmp_path / "conf/sitecustomize.py").write_text(patch, encoding="utf-8")
    part = tmp_path / "corpus/labelled"
    names = [f"u{n:02d}" for n in range(24)]
    tone = write_tone(part / "tone.wav")
    bad = "u05"
    audio = {name: f"sleep 0.2; cat {tone if name != bad else part / 'none'} |" for name in names}
    for table, rows in (("wav.scp", audio), ("text", dict.fromkeys(names, "RED LAMP"))):
        (part / table).write_text("".join(f"{name} {row}\n" for name, row in rows.items()))
    succeeded(prepare(tmp_path, "one"))
    calls = [prepare(tmp_path, "many", "--job", job) for job in CALLS]
    kill_when(calls.pop(1), tmp_path / "many/checked/labelled/00001.json")
    logged = [succeeded(call) for call in (*calls, prepare(tmp_path, "many", "--job", "2/4"))]
    assert all("this job's" in each for each in logged) and not (tmp_path / "many/manifests").exists()
    shutil.rmtree(tmp_path / "many/checked/test-split")  # a job that never ran
    succeeded(prepare(tmp_path, "many"))
    assert of_stage_0(tmp_path / "one") == of_stage_0(tmp_path / "many")
    assert bad in (tmp_path / "many/manifests/skipped.tsv").read_text() and not (tmp_path / "many/checked").exists()
    assert "up to date" in succeeded(prepare(tmp_path, "many", "--job", "2/4"))


# Stage 7


def test_labels_are_the_same_by_jobs_one_of_them_killed(tiny: Tiny) -> None:
    def labels() -> dict[str, bytes]:
        folder = tiny.data / "num"
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".done"]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    tiny.run("label_unlabelled.py", "--nj", "1")
    one = labels()
    shutil.rmtree(tiny.data / "num")
    calls = [tiny.start("label_unlabelled.py", "--nj", "1", "--job", job) for job in CALLS]
    kill_when(calls.pop(1), tiny.data / "num/teacher/unlabelled/00001.npz")
    logged = [succeeded(call) for call in calls] + [tiny.run("label_unlabelled.py", "--nj", "1", "--job", "2/4")]
    assert [each.count("lattices of") for each in logged] == [2, 2, 2, 1]
    assert not (tiny.data / "num/teacher/.done").exists()
    assert "lattices of" not in tiny.run("label_unlabelled.py", "--nj", "1")
    assert labels() == one
