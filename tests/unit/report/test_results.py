"""Result files as types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.report.results import Perplexities, ResultFile, TimingResult, TrainingResult, WerResult

ROOT = Path(__file__).parents[3]
FILES = {
    "wer.json": WerResult,
    "result.json": TrainingResult,
    "timing.json": TimingResult,
    "summary.json": Perplexities,
}


@pytest.mark.parametrize(("name", "kind"), FILES.items())
def test_committed_files_survive_reading_and_writing(name: str, kind: type[ResultFile], tmp_path: Path) -> None:
    paths = sorted(ROOT.glob(f"egs/*/results/**/{name}"))
    assert paths
    assert all(kind.read(path).plain() == json.loads(path.read_text()) for path in paths)
    kind.read(paths[0]).write(tmp_path / name)
    assert kind.read(tmp_path / name) == kind.read(paths[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda wer: wer.pop("wer"), r"wer\.json is not a valid wer\.json \(wer: Field required\); remove it and run"),
        (lambda wer: wer.update(extra=1), r"extra: Extra inputs are not permitted"),
        (lambda wer: wer.update(sub="many"), r"sub: Input should be a valid integer"),
        (lambda wer: wer.clear(), r"\(.*; .*; .* and 16 more\)"),
    ],
)
def test_a_file_with_other_keys_is_named(change, message: str, tmp_path: Path) -> None:
    content = json.loads(next(ROOT.glob("egs/*/results/**/wer.json")).read_text())
    change(content)
    (tmp_path / "wer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        WerResult.read(tmp_path / "wer.json")


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "wer.json").write_text("{")
    with pytest.raises(ValueError, match=r"wer\.json is not a valid wer\.json \(file: Invalid JSON"):
        WerResult.read(tmp_path / "wer.json")
