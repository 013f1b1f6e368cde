"""Benchmarks as tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.benchmarks import benchmark_lines, read_benchmark


def test_every_plain_value_is_a_column(tmp_path: Path) -> None:
    rows = [
        {"engine": "ours", "case": "bigram", "seconds": 0.00190712, "totals": [1.0]},
        {"engine": "theirs", "case": "bigram", "seconds": None, "error": "out of memory"},
    ]
    path = tmp_path / "lfmmi.json"
    path.write_text(json.dumps({"hardware": "a machine", "rows": rows}))
    assert benchmark_lines(read_benchmark(path)) == [
        "- hardware: a machine",
        "",
        "| case | engine | seconds | error |",
        "| --- | ---: | ---: | ---: |",
        "| bigram | ours | 0.001907 | - |",
        "| bigram | theirs | - | out of memory |",
    ]


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": 3}', "{}"])
def test_what_is_not_a_benchmark_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cut.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"cut\.json.*measure it again"):
        read_benchmark(path)
