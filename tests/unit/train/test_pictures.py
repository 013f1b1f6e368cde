"""Pictures of posteriors at each validation, and trainings without matplotlib."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill.train import pictures
from tests.support.training import RANDOM, assert_same_training, toy_trainer, write_letters, write_speech


def images(folder: Path) -> dict[str, list[int]]:
    """Updates of the pictures of each name."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [each.step for each in events.Images(tag)] for tag in events.Tags()["images"]}


def test_each_validation_has_two_pictures_and_they_change_nothing(tmp_path: Path) -> None:
    cuts, lang = write_speech(tmp_path / "speech"), write_letters(tmp_path / "lang")
    toy_trainer(tmp_path / "plain", cuts, lang, noise=RANDOM).run()
    trainer = toy_trainer(tmp_path / "drawn", cuts, lang, noise=RANDOM, drawn=True)
    trainer.run()
    found = images(tmp_path / "drawn")
    assert set(found) == {"valid/utterance 1", "valid/utterance 2"} and images(tmp_path / "plain") == {}
    assert all(len(steps) == trainer.progress.epoch and steps[-1] == 16 for steps in found.values())
    assert_same_training(tmp_path / "plain", tmp_path / "drawn")


def test_without_matplotlib_there_is_one_warning_and_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    pictures.possible.cache_clear()
    cuts, lang = write_speech(tmp_path / "speech"), write_letters(tmp_path / "lang")
    trainer = toy_trainer(tmp_path / "toy", cuts, lang, drawn=True)
    trainer.run()
    pictures.possible.cache_clear()
    assert trainer.progress.epoch > 1 and caplog.text.count("install the extra 'report'") == 1
    assert images(tmp_path / "toy") == {}
