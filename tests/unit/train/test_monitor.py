"""Progress of a training: log lines and curves."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
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
        monitor.update(step, {"loss": 1.0}, 0.1)
    monitor.close()
    assert "no more curves for tensorboard" in caplog.text and "No space left" in caplog.text
    assert "Traceback" not in capfd.readouterr().err and threading.excepthook is before


def test_a_disk_full_from_the_beginning_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(LocalFileSystem, "write", full)
    monitor = Monitor(tmp_path, "toy", 100, 0, True)
    monitor.update(10, {"loss": 1.0}, 0.1)
    monitor.close()
    assert "No space left" in caplog.text and "Traceback" not in capfd.readouterr().err
