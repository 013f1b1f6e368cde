"""The check of a GPU: its parts end, fail or run out of time; the update's parts add up; its goals and its page."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.config.experiment import Experiment
from distill.recipe.options import recipe_parser
from distill.report import benchmarks as page

ROOT = Path(__file__).resolve().parents[3]
SMALL = ("data.max_duration=0.6", "optim.precision=bfloat16")


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_the_parts_of_an_update_add_up() -> None:
    from benchmarks import step

    conf = ROOT / "egs/librispeech/conf/mini"
    rows = list(step.all_rows(Experiment.load(conf / "sn.yaml", SMALL), conf, torch.device("cpu"), 0.3, 1, "bigram"))
    peak, whole, *parts = rows
    assert [row["engine"] for row in parts] == [
        "teacher, forward", "LF-MMI", "clipping and optimiser", "student, forward and backward",
    ]  # fmt: skip
    assert sum(row["seconds"] for row in parts) == pytest.approx(whole["seconds"])
    assert whole["mfu_share"] > 0 and peak["flops_per_second"] > 1e8
    assert whole["audio_hours_per_hour"] == pytest.approx(0.6 / whole["seconds"]) and "2 x 0.3 s" in whole["case"]


def test_every_part_has_an_outcome(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import gpu_check

    lfmmi = next(part for part in gpu_check.PARTS if part.name == "LF-MMI")
    broken = gpu_check.Part("broken", 60, (), ("benchmarks.nothing",), False)
    slow = gpu_check.Part("slow", 1, (), ("timeit", "-n1", "-r1", "import time; time.sleep(60)"), False)
    monkeypatch.setattr(gpu_check, "PARTS", (broken, slow, lfmmi))
    rows = list(gpu_check.all_rows(Namespace(dry_run=True, data_dir=None, exp_dir=None)))
    outcomes = {row["engine"]: row["outcome"] for row in rows if row["case"] == "parts"}
    assert outcomes["slow"] == "out of time after 1 s" and outcomes["LF-MMI"] == "passed"
    assert outcomes["broken"].startswith("failed: ") and "benchmarks.nothing" in outcomes["broken"]
    assert any(row["case"].startswith("trigram") and row["engine"] == "ours (C++)" for row in rows)
    gpu_check.finish(rows, tmp_path / "gpu.json", goals=gpu_check.goals, each=True)
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["rows"] == rows and [goal["got"] for goal in content["goals"]] == [None] * 3


def test_eight_minutes_are_enough() -> None:
    from benchmarks import gpu_check

    assert sum(part.limit for part in gpu_check.PARTS) < 470


def test_goals_are_read_off_the_rows() -> None:
    from benchmarks import gpu_check

    update = {"case": "update of s5 from its teacher, 20 x 10 s, bfloat16"}
    rows: list[dict[str, Any]] = [
        {"case": "trigram (2145 states, 46915 arcs) B=32 T=500", "engine": "ours (Triton)", "seconds": 0.002},
        {**update, "engine": "whole", "seconds": 0.2, "share": 1.0, "mfu_share": 0.2},
        {**update, "engine": "LF-MMI", "seconds": 0.01, "share": 0.05},
    ]
    assert [(round(goal["got"], 6), goal["met"]) for goal in gpu_check.goals(rows)] == [
        (20, False),
        (5, True),
        (2, True),
    ]


def test_the_page_has_the_goals_before_and_after(tmp_path: Path) -> None:
    assert page.page(tmp_path).count(": not yet run") == 3
    (row,) = page.goal_table(tmp_path).rows
    assert row == ("gpu_check", "3", "0", "not yet run")
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    content = {"goals": [{"goal": "fast", "got": 0.5, "met": True}], "rows": [{"case": "parts", "seconds": 1.0}]}
    (tmp_path / "benchmarks/results/gpu_check.json").write_text(json.dumps(content))
    assert "goal: fast: 0.5, reached" in page.page(tmp_path) and "not yet run" not in page.page(tmp_path)


def test_stages_take_their_options() -> None:
    from benchmarks.recipe import STAGES, flags

    options = {"conf-dir": "c", "data-dir": "d", "exp-dir": "e", "device": "cpu", "experiment": "sn", "mini": "true"}
    args = recipe_parser("").parse_args(flags(options, {"optim.updates": 2}))
    assert args.set == ["optim.updates=2"] and args.corpus == "librispeech"
    assert all((ROOT / "local" / script).is_file() for script, *_ in STAGES.values())
