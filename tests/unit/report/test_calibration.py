"""The table and plot of confidences from fabricated files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.report import calibration, recognition

FIGURES = {
    "words": 4321, "right": 0.952, "nce": 0.3456, "error": 0.0123,
    "bins": [{"words": 21, "confidence": 0.45, "right": 0.5}, {"words": 4300, "confidence": 0.97, "right": 0.96}],
}  # fmt: skip
WER = {"method": "1best", "wer": 5.0, "ci95": [4.0, 6.0]}


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    config = {"stage": 9, "init": None, "model": {"streaming": {"chunk_frames": 16}}}
    for test_set in ("test-clean", "test-other"):
        for mode in ("offline", "streaming"):
            folder = tmp_path / f"ss/decode_{test_set}_{mode}_1best"
            folder.mkdir(parents=True)
            (folder / "wer.json").write_text(
                json.dumps({**WER, "wer": float(test_set == "test-other"), "set": test_set, "mode": mode})
            )
            figures = {**FIGURES, "nce": None} if test_set == "test-clean" else FIGURES
            (folder / "confidence.json").write_text(json.dumps(figures))
    (tmp_path / "ss/result.json").write_text(json.dumps({"config": config}))
    return tmp_path


def test_the_main_mode_stands_in_table_and_plot(exp: Path) -> None:
    runs = recognition.read_runs(exp)
    ((title, lines),) = calibration.sections(exp, runs, "results/reliability.svg")
    assert title == calibration.TITLE
    assert lines[2:4] == [
        "| ss | test-clean | 4,321 | 95.20 | - | 0.012 |",
        "| ss | test-other | 4,321 | 95.20 | 0.346 | 0.012 |",
    ]
    assert lines[-1].endswith("(results/reliability.svg)")
    assert "ss: NCE 0.346, calibration error 0.012" in (exp / "reliability.svg").read_text()
    sets = ("test-clean", "test-other")
    assert calibration.files(runs) == [f"ss/decode_{name}_streaming_1best/confidence.json" for name in sets]


def test_without_confidences_nothing_is_said(exp: Path) -> None:
    for path in exp.glob("*/*/confidence.json"):
        path.unlink()
    assert calibration.sections(exp, recognition.read_runs(exp)) == []


def test_a_file_cut_short_is_named(exp: Path) -> None:
    (exp / "ss/decode_test-other_streaming_1best/confidence.json").write_text("{")
    with pytest.raises(ValueError, match=r"test-other_streaming_1best/confidence.json is not JSON.*stage 10"):
        calibration.sections(exp, recognition.read_runs(exp))
