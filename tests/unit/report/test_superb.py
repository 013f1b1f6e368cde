"""Scores of SUPERB against the published ones of table 2 of STaR (papers/004)."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.report import superb
from distill.report.collect import collect
from distill.report.experiments import page
from distill.report.superb import METRICS, PUBLISHED, generalizability, overall
from tests.support import results

PRINTED = {  # overall, generalizability
    "HuBERT BASE (94.7 M)": (80.8, 941), "LightHuBERT small (27.0 M)": (79.1, 900), "ARMHuBERT-S (22.4 M)": (77.5, 828),
    "DPHuBERT (23.6 M)": (78.9, 866), "STaRHuBERT (22.3 M)": (79.5, 887), "STaRHuBERT-L (26.6 M)": (79.8, 896),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_scores_are_those_that_the_paper_prints(name: str) -> None:
    """The printed figures are rounded: 0.0001 of MTWV are 0.15 of generalizability, 0.01 of DER 0.23."""
    figures = dict(zip(METRICS, PUBLISHED[name], strict=True))
    assert overall(figures) == pytest.approx(PRINTED[name][0], abs=0.055)
    assert generalizability(figures) == pytest.approx(PRINTED[name][1], abs=1.2)


def test_the_reference_points_are_0_and_1000() -> None:
    assert generalizability({metric: metric.fbank for metric in METRICS}) == 0
    assert generalizability({metric: metric.sota for metric in METRICS}) == pytest.approx(1000)
    assert overall({metric: metric.sota for metric in METRICS}) == pytest.approx(82.8, abs=0.05)  # as printed


def test_a_task_counts_once_in_generalizability() -> None:
    f1, cer = (metric for metric in METRICS if metric.task == "SF")
    (ks,) = (metric for metric in METRICS if metric.task == "KS")
    figures = {f1: f1.sota, cer: cer.fbank, ks: ks.sota}
    assert generalizability(figures) == pytest.approx(1000 * (0.5 + 1) / 2)
    assert overall(figures) == pytest.approx((89.81 + (100 - 52.94) + 96.66) / 3)


def test_the_table_has_what_was_measured_and_the_same_tasks_of_published_models(tmp_path: Path) -> None:
    results.superb_task(tmp_path / "star", "KS", accuracy=90.0)
    results.superb_task(tmp_path / "star", "PR", per=10.0)
    results.superb_task(tmp_path / "dt", "PR", per=20.0)
    table = superb.table({name: superb.read(tmp_path / name) for name in ("star", "dt", "none")})
    assert table is not None
    assert table.head == ("model", "PR PER", "KS Acc", "overall", "general.", "tasks")
    scores = 1000 * ((82.01 - 10) / (82.01 - 3.53) + (90 - 41.3826674) / (96.66 - 41.3826674)) / 2
    assert table.rows[:2] == (
        ("star", "10.00", "90.00", "90.0", f"{scores:.0f}", "2"),
        ("dt", "20.00", "-", "80.0", f"{1000 * (82.01 - 20) / (82.01 - 3.53):.0f}", "1"),
    )
    assert table.rows[2][:3] == ("HuBERT BASE (94.7 M)", "5.41", "96.30") and len(table.rows) == 2 + len(PUBLISHED)
    assert superb.table({"none": {}}) is None


def test_own_recordings_stand_in_columns_of_their_own_and_in_no_score(tmp_path: Path) -> None:
    results.superb_task(tmp_path / "star", "KS", own=True, accuracy=90.0)
    results.superb_task(tmp_path / "dt", "PR", per=20.0)
    table = superb.table({name: superb.read(tmp_path / name) for name in ("star", "dt")})
    assert table is not None and table.head[1:3] == ("PR PER", "KS (own data) Acc")
    assert table.rows[0] == ("star", "-", "90.00", "-", "-", "1")
    assert table.rows[2][:3] == ("HuBERT BASE (94.7 M)", "5.41", "-")


def test_the_report_has_the_table_and_its_files_are_collected(tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    results.training(exp / "star", 8)
    assert "SUPERB" not in page(exp, "title")
    results.superb_task(exp / "star", "KS", accuracy=90.0)
    assert "## SUPERB (%)" in page(exp, "title") and "| star | 90.00 |" in page(exp, "title")
    copies = collect(exp, tmp_path / "results", tmp_path)
    assert tmp_path / "results/star/superb/KS.json" in copies


def test_conditions_stand_beside_the_recordings_as_they_are(tmp_path: Path) -> None:
    exp = tmp_path / "exp"
    results.superb_task(exp / "dt", "KS", {"two": {"accuracy": 70.0}}, accuracy=80.0)
    conditions = {"room": {"accuracy": 60.5}, "two": {"accuracy": 75.0}}
    results.superb_task(exp / "star", "KS", conditions, own=True, accuracy=90.0)
    results.superb_task(exp / "star", "PR", per=10.0)
    table = superb.distorted_table({name: superb.read(exp / name) for name in ("dt", "star")})
    assert table is not None and table.head == ("figure", "model", "clean", "room", "two")
    assert table.rows == (
        ("KS Acc", "dt", "80.00", "-", "70.00"),
        ("KS (own data) Acc", "star", "90.00", "60.50", "75.00"),
    )
    results.training(exp / "star", 8)
    assert "## SUPERB (%) under distortions" in page(exp, "title")
    assert superb.distorted_table({"none": ()}) is None


def test_a_task_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="'KWS' is not a task of SUPERB; did you mean 'KS'"):
        superb.main_figure((), "KWS noise")
