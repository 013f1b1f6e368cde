"""Which models nothing betters, and the picture of them."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from distill.report import recognition
from distill.report.pareto import Point, points, svg, unbeaten


def point(name: str, wer: float, params: int, rtf: float, delay: float | None) -> Point:
    return Point(name, "offline" if delay is None else "streaming", "onnx", wer, params, rtf, delay)


SMALL = point("small", 5.0, 10, 0.01, 200.0)
GOOD = point("good", 3.0, 100, 0.1, None)
WORSE = point("worse & <slow>", 5.5, 10, 0.02, 200.0)
LATE = point("late", 4.0, 10, 0.01, 800.0)


def test_a_point_is_beaten_by_one_that_is_no_worse_in_anything() -> None:
    assert unbeaten([SMALL, GOOD, WORSE, LATE]) == {SMALL, GOOD, LATE}
    assert unbeaten([WORSE]) == {WORSE}
    assert unbeaten([SMALL, SMALL]) == {SMALL}, "equals do not beat each other"


@pytest.mark.parametrize("found", [[SMALL], [SMALL, GOOD, WORSE, LATE]])
def test_the_picture_is_well_formed_and_has_every_point_inside(found: list[Point]) -> None:
    picture = ElementTree.fromstring(svg(found, "WER < all"))
    space = "{http://www.w3.org/2000/svg}"
    titles = [t.text for t in picture.iter(f"{space}title")]
    assert len(titles) == len(found) and all(any(p.label in (t or "") for t in titles) for p in found)
    marks = [c for c in picture.iter(f"{space}circle") if list(c)]
    assert all(64 <= float(c.get("cx")) <= 570 and 48 <= float(c.get("cy")) <= 384 for c in marks)
    assert sum(c.get("stroke") == "black" for c in marks) == len(unbeaten(found))


def test_lower_error_and_faster_are_below_and_left() -> None:
    picture = ElementTree.fromstring(svg([SMALL, GOOD], "two"))
    circles = [c for c in picture.iter("{http://www.w3.org/2000/svg}circle") if list(c)]
    marks = {next(iter(c)).text.split(",")[0]: c for c in circles}
    assert float(marks["small"].get("cx")) < float(marks["good"].get("cx"))
    assert float(marks["good"].get("cy")) > float(marks["small"].get("cy"))


def test_points_come_from_timing_and_decodings() -> None:
    rows = [{"mode": "streaming", "runtime": r, "rtf": x} for r, x in (("torch", 0.2), ("onnx", 0.1), ("int8", 0.05))]
    decoding = {"set": "test", "mode": "streaming", "method": "1best", "wer": 7.0, "lookahead_mean_ms": 470.0}
    params = {"params": {"trunk": 3, "head": 1}, "config": {"stage": 9}}
    quantised = {**decoding, "mode": "streaming-int8", "wer": 7.1}
    run = recognition.Run("ss", params, (decoding,), {"rows": rows})
    assert points([run], "test", "1best") == [
        Point("ss", "streaming", "torch", 7.0, 4, 0.2, 470.0),
        Point("ss", "streaming", "onnx", 7.0, 4, 0.1, 470.0),
    ]
    both = recognition.Run("ss", params, (decoding, quantised), {"rows": rows})
    assert points([both], "test", "1best")[2] == Point("ss", "streaming", "int8", 7.1, 4, 0.05, 470.0)
    assert points([run], "other", "1best") == [] and points([recognition.Run("ss", params, ())], "test", "1best") == []
