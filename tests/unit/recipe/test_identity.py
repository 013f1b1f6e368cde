"""Trainings of earlier versions stay valid: new settings with their defaults and new names change no identity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.config.experiment import NOT_OF_TRAINING, Experiment
from distill.recipe.stage import _changes

EGS = Path(__file__).parents[3] / "egs"
RESULTS = EGS / "spoken_commands/results/full"


@pytest.mark.parametrize("name", ["teacher", "sn", "ss"])
def test_a_training_of_the_first_version_is_not_put_aside(name: str) -> None:
    before = json.loads((RESULTS / name / "result.json").read_text())["config"]
    now = Experiment.parse(before, "here").identity()
    settings = {key: value for key, value in before.items() if key not in NOT_OF_TRAINING}
    assert _changes({"settings": settings, "inputs": {}}, {"settings": json.loads(json.dumps(now)), "inputs": {}}) == []


def test_a_pruning_of_parameters_is_not_put_aside() -> None:
    pruning = {"units": ["heads", "ffn", "layers"], "lr_scale": 50.0}  # as it was before `of`
    before = json.loads((RESULTS / "sn/result.json").read_text())["config"]
    before["model"]["pruning"], before["objective"]["sparsity"] = pruning, {"target": 0.5}
    assert Experiment.parse(before, "here").identity()["model"]["pruning"] == pruning


def test_a_changed_setting_changes_the_identity() -> None:
    values = json.loads((RESULTS / "sn/result.json").read_text())["config"]
    values["teacher"]["hears"] = "clean"
    values["objective"]["alpha"] = 0.5
    identity = Experiment.parse(values, "here").identity()
    assert (identity["teacher"]["hears"], identity["objective"]["alpha"]) == ("clean", 0.5)
