"""Benchmarks as tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.report.benchmarks import benchmark_lines, read_benchmark


def lines_of(tmp_path: Path, rows: list[dict], **facts: object) -> list[str]:
    path = tmp_path / "lfmmi.json"
    path.write_text(json.dumps({"hardware": "a machine", **facts, "rows": rows}))
    return benchmark_lines(read_benchmark(path))


def test_every_plain_value_is_a_column_with_its_unit(tmp_path: Path) -> None:
    rows = [
        {"engine": "ours", "case": "bigram", "seconds": 0.00190712, "peak_mb": 5.3, "totals": [1.0], "exit": None},
        {"engine": "theirs", "case": "bigram", "seconds": None, "error": "out of memory"},
    ]
    assert lines_of(tmp_path, rows) == [
        "- hardware: a machine",
        "",
        "| case | engine | time/ms | peak/MB | error |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| bigram | ours | 1.91 | 5.3 | - |",
        "| bigram | theirs | - | - | out of memory |",
    ]


def test_cases_with_many_rows_have_tables_in_one_unit(tmp_path: Path) -> None:
    engines = {"ours": 1, "torch": 12, "k2": 1539}
    rows = [
        {"case": case, "engine": engine, "seconds": base * times, "ratio": float(times)}
        for case, base in (("small", 1e-3), ("large", 1.0))
        for engine, times in engines.items()
    ]
    lines = lines_of(tmp_path, rows)
    assert [line for line in lines if line.startswith("**")] == ["**small**", "**large**"]
    assert lines.count("| engine | time/s | time, ours = 1 |") == 2
    assert "| k2 | 1.54 | 1,539x |" in lines and "| k2 | 1,539 | 1,539x |" in lines
    assert "| ours | 0.001 | 1.00x |" in lines


def test_a_ratio_names_the_faster_direction(tmp_path: Path) -> None:
    rows = [{"case": "T1", "engine": "torch", "seconds": 9.0, "ratio": 1.0}]
    rows += [{"case": "S5", "engine": e, "seconds": 9 / r, "ratio": r} for e, r in (("torch", 6.0), ("int8", 12.0))]
    assert "| case | engine | time/s | speed, T1 = 1 |" in lines_of(tmp_path, rows)
    rows[1]["ratio"] = 1 / 6
    assert "| case | engine | time/s | ratio |" in lines_of(tmp_path, rows), "one says slower, one says faster"


def test_extremes_share_a_column_and_shares_are_percent(tmp_path: Path) -> None:
    rows = [{"case": "a", "share_of_peak": 0.705, "ratio_low": 1.0, "ratio_high": 2.0, "macs_per_second": 2.41e9}]
    assert lines_of(tmp_path, rows)[2:] == [
        "| case | share of peak/% | ratio, range | MAC per s of audio |",
        "| --- | ---: | ---: | ---: |",
        "| a | 70.5 | 1.00x to 2.00x | 2.41 G |",
    ]


def test_goals_say_whether_they_are_reached(tmp_path: Path) -> None:
    goals = ["no stream is lost", {"goal": "9 times as fast", "got": 8.76, "met": False}]
    lines = lines_of(tmp_path, [{"case": "a", "seconds": 1}], goals=goals)
    assert lines[1:3] == ["- goal: no stream is lost", "- goal: 9 times as fast: 8.76, missed"]


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": 3}', "{}"])
def test_what_is_not_a_benchmark_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cut.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"cut\.json.*measure it again"):
        read_benchmark(path)
