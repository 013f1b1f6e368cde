"""Loss curves and error rates over epochs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from distill.report import curves
from distill.train.monitor import Curves
from tests.support.results import decoding

ROOT = Path(__file__).parents[3]


def trained(folder: Path, updates: int = 40) -> Path:
    """An experiment's folder with the curves that a training writes."""
    folder.mkdir(parents=True)
    written = Curves(folder, 0)
    for update in range(10, updates + 1, 10):
        written.add("train", {"loss": 10 / update, "mmi": 8 / update, "lr": 0.1}, update)
    written.add("valid", {"loss": 0.5, "mmi": 0.25}, updates)
    written.close()
    return folder


def texts(path: Path) -> str:
    """What is written in an SVG; its PNG is there, too."""
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return " ".join(ElementTree.parse(path).getroot().itertext())


def test_what_a_training_writes_is_read(tmp_path: Path) -> None:
    series = curves.read(trained(tmp_path / "toy") / "curves.tsv")
    assert series["train/loss"] == {10: 1.0, 20: 0.5, 30: 0.333333, 40: 0.25}
    assert series["valid/mmi"] == {40: 0.25} and set(series) >= {"train/mmi", "train/lr", "valid/loss"}


def test_each_term_has_a_plot_with_all_experiments(tmp_path: Path) -> None:
    for name in ("teacher", "sn"):
        trained(tmp_path / "exp" / name)
    written = curves.draw([tmp_path / "exp"], tmp_path / "out")
    assert [path.name for path in written] == ["loss.svg", "loss.png", "mmi.svg", "mmi.png"]
    text = texts(tmp_path / "out/mmi.svg")
    assert all(f"{name}, {kind}" in text for name in ("teacher", "sn") for kind in ("train", "valid"))


def test_error_rates_are_drawn_where_several_epochs_were_decoded(tmp_path: Path) -> None:
    teacher = trained(tmp_path / "teacher")
    decoding(teacher, "test-clean", "offline", "1best", 9.0, epoch=4)
    assert "wer.svg" not in {path.name for path in curves.draw([teacher], tmp_path / "one")}
    earlier = trained(tmp_path / "before/teacher")
    decoding(earlier, "test-clean", "offline", "1best", 12.0, epoch=2)
    assert curves.draw([teacher, earlier], tmp_path / "both")[-1].name == "wer.png"
    assert "teacher, test-clean offline 1best" in texts(tmp_path / "both/wer.svg")


def test_long_trainings_are_averaged() -> None:
    line = curves.thinned({float(update): update % 2 for update in range(3000)})
    assert len(line) == curves.MOST_POINTS and set(line.values()) == {0.5}


def test_a_damaged_table_is_named_with_its_line(tmp_path: Path) -> None:
    path = trained(tmp_path / "toy") / "curves.tsv"
    path.write_text(path.read_text() + "50\ttrain/loss")
    assert max(curves.read(path)["train/loss"]) == 40  # being written
    path.write_text(path.read_text() + "\n")
    with pytest.raises(ValueError, match=r"curves\.tsv:16: expected update, name and value"):
        curves.read(path)


def test_a_training_without_a_validation_is_an_error(tmp_path: Path) -> None:
    (trained(tmp_path / "toy") / "curves.tsv").write_text("update\tname\tvalue\n10\ttrain/loss\t1\n")
    with pytest.raises(ValueError, match=r"curves\.tsv: no values of a validation"):
        curves.draw([tmp_path / "toy"], tmp_path / "out")


@pytest.mark.parametrize("there", [True, False])
def test_the_tool_writes_beside_the_experiment(tmp_path: Path, there: bool) -> None:
    folder = trained(tmp_path / "toy") if there else tmp_path
    done = subprocess.run(
        [sys.executable, ROOT / "tools/plots.py", folder], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == (0 if there else 1)
    assert ("toy/plots/loss.svg" in done.stdout) == there
    assert there or (done.stderr.startswith("tools/plots.py: no curves.tsv in or below") and not done.stdout)
