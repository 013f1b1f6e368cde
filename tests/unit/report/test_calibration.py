"""The table and plot of confidences from fabricated files."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.report import calibration
from distill.report.results import CalibrationResult
from distill.report.runs import read_runs
from distill.scoring.calibration import Bin, Calibration
from tests.support.results import decoding, training, write

FIGURES = {
    "words": 4321, "right": 0.952, "nce": 0.3456, "error": 0.0123,
    "bins": [{"words": 21, "confidence": 0.45, "right": 0.5}, {"words": 4300, "confidence": 0.97, "right": 0.96}],
}  # fmt: skip


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    training(tmp_path / "ss", 9, 16)
    for test_set in ("test-clean", "test-other"):
        for mode in ("offline", "streaming"):
            folder = decoding(tmp_path / "ss", test_set, mode, "1best", float(test_set == "test-other"))
            write(folder / "confidence.json", {**FIGURES, "nce": None} if test_set == "test-clean" else FIGURES)
    return tmp_path


def test_the_main_mode_stands_in_table_and_plot(exp: Path) -> None:
    runs = read_runs(exp)
    ((title, lines),) = calibration.sections(exp, runs)
    assert title == calibration.TITLE
    assert lines[2:4] == [
        "| ss | test-clean | 4,321 | 95.20 | - | 0.012 |",
        "| ss | test-other | 4,321 | 95.20 | 0.346 | 0.012 |",
    ]
    assert lines[-1].endswith("(reliability.svg)")
    assert "ss: NCE 0.346, calibration error 0.012" in (exp / "reliability.svg").read_text()
    sets = ("test-clean", "test-other")
    assert calibration.files(runs) == [f"ss/decode_{name}_streaming_1best/confidence.json" for name in sets]


def test_without_confidences_there_is_no_section(exp: Path) -> None:
    for path in exp.glob("*/*/confidence.json"):
        path.unlink()
    assert calibration.sections(exp, read_runs(exp)) == []


def test_a_file_cut_short_is_named(exp: Path) -> None:
    (exp / "ss/decode_test-other_streaming_1best/confidence.json").write_text("{")
    with pytest.raises(ValueError, match=r"other_streaming_1best/confidence.json is not a valid .*stage 10"):
        calibration.sections(exp, read_runs(exp))


def test_a_calibration_survives_writing_and_reading(tmp_path: Path) -> None:
    bins = (Bin(3, 0.4, 0.5), Bin(7, 0.9, 1.0))
    calibration.write_calibration(tmp_path, Calibration(10, 0.9, None, 0.1, bins))
    result = CalibrationResult.read(tmp_path / "confidence.json")
    assert (result.words, result.nce, result.bins[1].right) == (10, None, 1.0)
