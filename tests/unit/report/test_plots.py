"""Pareto optimality, and the plots."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from distill.report import plots
from distill.report.plots import Point, pareto_optimal
from distill.report.results import CalibrationBin, CalibrationResult, TimingResult, TrainingResult, WerResult
from distill.report.runs import Run
from distill.report.speed import points
from tests.support.results import timing, timing_row, training, wer


def point(name: str, rate: float, params: int, rtf: float, delay: float | None) -> Point:
    return Point(name, "offline" if delay is None else "streaming", "onnx", rate, params, rtf, delay)


SMALL = point("small", 5.0, 10, 0.01, 200.0)
GOOD = point("good", 3.0, 100, 0.1, None)
WORSE = point("worse & <slow>", 5.5, 10, 0.02, 200.0)
LATE = point("late", 4.0, 10, 0.01, 800.0)


def test_a_point_is_dominated_by_one_that_is_no_worse_in_anything() -> None:
    assert pareto_optimal([SMALL, GOOD, WORSE, LATE]) == {SMALL, GOOD, LATE}
    assert pareto_optimal([WORSE]) == {WORSE}
    assert pareto_optimal([SMALL, SMALL]) == {SMALL}, "equals do not dominate each other"


def drawn(path: Path) -> str:
    """The text of an SVG that is well-formed; its PNG is there, too."""
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return " ".join(ElementTree.parse(path.with_suffix(".svg")).getroot().itertext())


@pytest.mark.parametrize("some", [[SMALL], [SMALL, GOOD, WORSE, LATE]])
def test_the_pareto_plot_names_every_model_and_is_reproducible(some: list[Point], tmp_path: Path) -> None:
    for name in ("first", "second"):
        plots.pareto(some, "WER < all", tmp_path / name)
    text = drawn(tmp_path / "first")
    assert all(each.name in text for each in some) and "Pareto-optimal" in text and "WER < all" in text
    for kind in ("svg", "png"):
        first, second = ((tmp_path / f"{name}.{kind}").read_bytes() for name in ("first", "second"))
        assert first == second


def test_the_reliability_plot_has_a_line_for_each_system(tmp_path: Path) -> None:
    bins = (CalibrationBin(words=0, confidence=0.0, right=0.0), CalibrationBin(words=9, confidence=0.9, right=1.0))
    result = CalibrationResult(words=9, right=1.0, nce=None, error=0.1, bins=bins)
    plots.reliability({"a < b": result, "ss": result}, tmp_path / "reliability")
    text = drawn(tmp_path / "reliability")
    assert "a < b: NCE -, calibration error 0.100" in text and "ss: NCE" in text


def test_the_pipeline_has_its_boxes_and_arrows(tmp_path: Path) -> None:
    plots.pipeline([("T", "2 M"), ("SN", "1 M")], ["hidden MSE"], tmp_path / "pipeline")
    text = drawn(tmp_path / "pipeline")
    assert all(part in text for part in ("T", "2 M", "SN", "1 M", "hidden MSE"))


def test_points_come_from_timing_and_decodings(tmp_path: Path) -> None:
    training(tmp_path / "ss", 9, params={"trunk": 3, "head": 1})
    rows = [timing_row(runtime, rtf) for runtime, rtf in (("torch", 0.2), ("onnx", 0.1), ("int8", 0.05))]
    plain = WerResult.model_validate(wer("test", "streaming", "1best", 7.0, lookahead_mean_ms=470.0))
    quantised = WerResult.model_validate(wer("test", "streaming-int8", "1best", 7.1, lookahead_mean_ms=470.0))
    result, times = TrainingResult.read(tmp_path / "ss/result.json"), TimingResult.model_validate(timing(rows=rows))
    run = Run("ss", result, (plain,), times)
    assert points([run], "test") == [
        Point("ss", "streaming", "torch", 7.0, 4, 0.2, 470.0),
        Point("ss", "streaming", "onnx", 7.0, 4, 0.1, 470.0),
    ]
    both = Run("ss", result, (plain, quantised), times)
    assert points([both], "test")[2] == Point("ss", "streaming", "int8", 7.1, 4, 0.05, 470.0)
    assert points([run], "other") == [] and points([Run("ss", result, ())], "test") == []
