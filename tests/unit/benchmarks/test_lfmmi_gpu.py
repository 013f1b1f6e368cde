"""The GPU benchmark: its message without a GPU, and its table, made small on a CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.lfmmi import TorchEngine

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))

    from benchmarks import lfmmi_gpu

    return lfmmi_gpu


def test_a_missing_gpu_is_reported(bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/lfmmi_gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ending:
        bench.main()
    assert ending.value.code == 3
    assert capsys.readouterr().err.splitlines() == [
        "benchmarks/lfmmi_gpu.py: torch finds no CUDA device here, so nothing was measured"
    ]


def test_the_table_has_every_row(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Full:
        def score(self, *arguments: Any) -> Any:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 900 GiB")

    monkeypatch.setattr(bench, "engines", lambda device: iter([("ours", TorchEngine()), ("full", Full())]))
    graph = bench.numerators(1, 1)[0]
    monkeypatch.setattr(bench, "denominator", lambda name: graph)
    rows = list(bench.all_rows(torch.device("cpu"), batch=2, frames=6, repeats=1))
    assert [row["engine"] for row in rows] == ["ours", "full"] * 3
    assert all(row["seconds"] > 0 for row in rows if row["engine"] != "full")
    assert rows[1]["error"] == "CUDA out of memory."
    bench.finish(rows, tmp_path / "table.json", hardware="none")
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["rows"] == rows and content["hardware"] == "none"


def test_graphs_have_the_sizes_that_results_name(bench: Any) -> None:
    sizes = [(g.num_states, len(g.src)) for g in map(bench.denominator, ("bigram", "trigram"))]
    assert sizes == [(85, 3655), (2145, 46915)]
    with pytest.raises(ValueError, match="no denominator 'unigram'"):
        bench.denominator("unigram")
