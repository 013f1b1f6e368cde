"""The batch scripts, with programs in place of Slurm's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUBS = {
    "sbatch": 'echo "$@" >>sbatch.log; echo "$(wc -l <sbatch.log);cluster"',
    "scontrol": 'if [[ $1 == show ]]; then printf "first\\nsecond\\n"; else echo "$@" >>scontrol.log; fi',
    "srun": 'pids=(); for n in 0 1; do SLURM_NODEID=$n bash -c \'"$@"\' - "$@" & pids+=($!); done\n'
    "trap 'kill -USR1 \"${pids[@]}\"' USR1; status=0\n"
    'for pid in "${pids[@]}"; do while kill -0 $pid 2>/dev/null; do wait $pid; done; wait $pid || status=$?; done\n'
    "exit $status",
}
RUN = """trap "exit 75" USR1
line=$(printf "[%s]" "$@")
echo "$line" >>run.log
for n in $(seq "${WORK:-0}"); do sleep 0.1; done"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A repository with the batch scripts, and a recipe that works for a while or until SIGUSR1."""
    shutil.copytree(ROOT / "local/slurm", tmp_path / "local/slurm")
    for name, text in {"egs/own/run.sh": RUN, **{f"bin/{name}": text for name, text in STUBS.items()}}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    return tmp_path


def start(cluster: Path, script: str, *options: str, **environment: str | int) -> subprocess.Popen:
    """A batch script as Slurm starts it: a copy of it, elsewhere."""
    spool = shutil.copy(cluster / "local/slurm" / script, cluster / "spool")
    values = {"SLURM_JOB_ID": 1234, **environment, "PATH": f"{cluster / 'bin'}:{os.environ['PATH']}"}
    return subprocess.Popen(
        [spool, "egs/own/run.sh", *options], cwd=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **{key: str(value) for key, value in values.items()}},
    )  # fmt: skip


def logged(cluster: Path, name: str) -> list[str]:
    path = cluster / f"{name}.log"
    return path.read_text().splitlines() if path.exists() else []


def array(first: int, last: int, step: int, number: int, count: int) -> dict[str, int]:
    values = {"MIN": first, "MAX": last, "STEP": step, "ID": number, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": value for name, value in values.items()}


@pytest.mark.parametrize(
    ("tasks", "job"),
    [(array(1, 40, 1, 3, 40), "3/40"), (array(0, 3, 1, 0, 4), "1/4"), (array(10, 16, 2, 16, 4), "4/4"), ({}, None)],
)
def test_the_jobs_of_an_array_are_counted_from_1(cluster: Path, tasks: dict[str, int], job: str | None) -> None:
    process = start(cluster, "array.sh", "--set", "a=b c", **tasks)
    assert (process.communicate(timeout=30)[0], process.returncode) == ("", 0)
    assert logged(cluster, "run") == ["[--set][a=b c]" + (f"[--job][{job}]" if job else "")]
    assert logged(cluster, "scontrol") == []


def test_an_array_that_is_no_range_is_refused(cluster: Path) -> None:
    process = start(cluster, "array.sh", **array(1, 9, 1, 3, 3))
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 2 and "--array=1-40" in output and logged(cluster, "run") == []


@pytest.mark.parametrize(("script", "nodes"), [("array.sh", 1), ("train.sh", 2)])
def test_the_warning_before_the_time_limit_is_passed_on_and_the_job_queued_again(
    cluster: Path, script: str, nodes: int
) -> None:
    process = start(cluster, script, WORK=300, SLURM_NNODES=2, SLURM_JOB_NODELIST="n[1-2]", SLURM_GPUS_ON_NODE=8)
    end = time.monotonic() + 30
    while len(logged(cluster, "run")) < nodes and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=20)[0] == "" and process.returncode == 75
    assert logged(cluster, "scontrol") == ["requeue 1234"]


def test_every_node_trains_as_its_part_of_one_torchrun(cluster: Path) -> None:
    process = start(cluster, "train.sh", SLURM_NNODES=2, SLURM_JOB_NODELIST="n[1-2]", SLURM_GPUS_ON_NODE=8)
    assert (process.communicate(timeout=30)[0], process.returncode) == ("", 0)
    torchrun = "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint first:29734 --node-rank"
    assert sorted(logged(cluster, "run")) == [f"[--launcher][{torchrun} {node}]" for node in (0, 1)]


def test_the_chain_runs_every_stage_after_the_one_before(cluster: Path) -> None:
    options = {"jobs": "8", "cpu": "--partition=cpu", "PATH": f"{cluster / 'bin'}:{os.environ['PATH']}"}
    command = [cluster / "local/slurm/chain.sh", "egs/own/run.sh", "--set", "a=1"]
    done = subprocess.run(command, cwd=cluster, env={**os.environ, **options}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = logged(cluster, "sbatch")
    assert lines[0].startswith("--parsable --array=1-8 --partition=cpu ") and "--dependency" not in lines[0]
    after = [line.split("--dependency=")[1].split()[0] for line in lines[1:]]
    assert [each.split(":")[1] for each in after] == [str(n) for n in range(1, len(lines))]
    stages = []
    for kind, line in zip(["afterok:", *after], lines):
        words = line.split()
        first, last = (int(words[words.index(name) + 1]) for name in ("--stage", "--stop-stage"))
        stages += [] if "--array" in line else list(range(first, last + 1))
        assert ("--array=1-8" in words) <= (first == last and first in (0, 1, 7, 10))
        assert ("train.sh" in line) == (first in (5, 8, 11)) and line.count("egs/own/run.sh --set a=1") == 1
        assert (kind.split(":")[0] == "afterany") == (first in (0, 7, 10) and "--array" not in line)
    assert stages == list(range(14))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ([], "expected egs/CORPUS/run.sh and its options (got '')"),
        (["egs/nope/run.sh"], "expected egs/CORPUS/run.sh and its options (got 'egs/nope/run.sh')"),
        (["egs/own/run.sh", "--stage", "3"], "leave out --stage, which the chain gives"),
    ],
)
def test_a_chain_that_cannot_run_submits_nothing(cluster: Path, call: list[str], message: str) -> None:
    options = {"PATH": f"{cluster / 'bin'}:{os.environ['PATH']}"}
    command = [cluster / "local/slurm/chain.sh", *call]
    done = subprocess.run(command, cwd=cluster, env={**os.environ, **options}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"chain.sh: {message}\n") and not logged(cluster, "sbatch")
