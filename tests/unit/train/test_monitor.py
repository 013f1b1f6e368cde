"""Progress of a training: log lines and curves."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

from distill.train.monitor import Monitor


def full(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_ends_the_curves_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    before, monitor = threading.excepthook, Monitor(tmp_path, "toy", 100, 0, True)
    monkeypatch.setattr(LocalFileSystem, "append", full)
    for step in range(400):
        monitor.update(step, {"loss": 1.0}, 0.1, 0.0)
    monitor.close()
    assert "no more curves in" in caplog.text and "No space left" in caplog.text
    assert "Traceback" not in capfd.readouterr().err and threading.excepthook is before


def test_a_disk_full_from_the_beginning_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(LocalFileSystem, "write", full)
    monitor = Monitor(tmp_path, "toy", 100, 0, True)
    monitor.update(10, {"loss": 1.0}, 0.1, 0.0)
    monitor.close()
    assert "No space left" in caplog.text and "Traceback" not in capfd.readouterr().err


def values(folder: Path) -> dict[tuple[int, str], float]:
    header, *rows = (row.split("\t") for row in (folder / "curves.tsv").read_text().splitlines())
    assert header == ["update", "name", "value"]
    return {(int(update), name): float(value) for update, name, value in rows}


def test_curves_are_a_table_and_tensorboard_has_the_same(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, "toy", 20, 0, True)
    for step in range(1, 21):
        monitor.update(step, {"loss": 1 / step, "mmi": 2.0, "gradient": 3.0}, 0.5, 12.0)
    monitor.valid(20, {"loss": 0.25}, 1)
    monitor.close()
    found = values(tmp_path)
    assert found[10, "train/loss"] == 0.1 and found[20, "valid/loss"] == 0.25 and found[20, "train/lr"] == 0.5
    assert found[20, "train/audio_per_second"] > 0 and 0.01 < found[20, "train/memory_gb"] < 100
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {(each.step, tag) for tag in events.Tags()["scalars"] for each in events.Scalars(tag)} == found.keys()


def test_a_continued_training_leaves_out_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    for done in (0, 10):
        monitor = Monitor(tmp_path, "toy", 30, done, True)
        for step in range(done + 1, 31):
            monitor.update(step, {"loss": float(step + done)}, 0.1, 0.0)
        monitor.close()
        with (tmp_path / "curves.tsv").open("a") as file:
            file.write("30\ttrain/lo")
    rows = [row for row in (tmp_path / "curves.tsv").read_text().splitlines() if "train/loss" in row]
    assert rows == ["10\ttrain/loss\t10", "20\ttrain/loss\t30", "30\ttrain/loss\t40"]


@pytest.mark.parametrize("first", [True, False])
def test_a_line_has_the_time_left_the_pace_and_each_term(
    tmp_path: Path, first: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with caplog.at_level("INFO"):
        monitor = Monitor(tmp_path, "toy", 100, 0, first)
        for step in range(1, 26):
            now += 2.0
            monitor.update(step, {"loss": 3.0, "mmi": 2.5, "gradient": 0.5}, 1e-4, 100.0)
    monitor.close()
    line = "update 16 of 100 (0:02:48 left, 50 h of audio an hour): lr 0.0001 loss 3 mmi 2.5 gradient 0.5"
    assert line in caplog.text and (tmp_path / "curves.tsv").exists() == first
