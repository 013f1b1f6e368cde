"""Cross-distortion mapping and the distortion classifier (papers/003) in the training loop."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill.batch import BEGIN
from distill.config.experiment import Experiment
from distill.corpora.cut_sets import write_cuts
from distill.train.import_teacher import write_random
from distill.train.loop import Trainer
from distill.train.setup import Folders, build_trainer
from tests.support.training import ALONE, SETTINGS, assert_same_training, write_letters, write_speech
from tests.unit.train.test_resume import dies

DISTORT = {"steps": [["reverb", "clean"], ["gaussian", "coloured", "clean"]]}
PLAIN = {"volume_probability": 0.0, "pitch_probability": 0.0}
QUICK = {"max_duration": 1.5, "workers": 0}


def student(**changes: Any) -> Experiment:
    values = {**SETTINGS, "name": "s", "stage": 8, "data": QUICK, "augment": PLAIN, "distort": DISTORT}
    values |= {"teacher": {"experiment": "t"}, "objective": {"hidden": {"layers": [1, 2]}}}
    return Experiment.parse({**values, **changes}, "test")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Cut sets, a language, and a teacher with random weights."""
    (tmp_path / "cuts").mkdir()
    for part in ("labelled", "dev"):
        write_cuts(write_speech(tmp_path / "speech", 12), tmp_path / f"cuts/{part}.jsonl.gz")
    (tmp_path / "t").mkdir()
    write_random(Experiment.parse({**SETTINGS, "name": "t"}, "test"), write_letters(tmp_path).outputs, tmp_path / "t")
    return tmp_path


def trainer_of(data: Path, experiment: Experiment, name: str = "s") -> Trainer:
    folder = data / name
    folder.mkdir()
    return build_trainer(experiment, Folders(data, data, data, data), folder, "native", ALONE, torch.device("cpu"))


@pytest.mark.parametrize("source", ["augmented", "clean", "second"])
def test_the_teacher_is_given_the_version_of_its_setup(data: Path, source: str) -> None:
    """Setup 2 with the same distortions, setup 1, setup 2."""
    trainer = trainer_of(data, student(teacher={"experiment": "t", "input": source}))
    targets = trainer.plan.teacher
    assert targets is not None
    different = 0
    for batches in (trainer.plan.batches(0, BEGIN), trainer.plan.valid()):
        for batch in batches:
            wave = {"augmented": batch.wave, "clean": batch.clean, "second": batch.second}[source]
            assert [x is None for x in (batch.clean, batch.second)] == [source != "clean", source != "second"]
            expected = targets.model(wave, batch.samples).hidden[1]
            assert torch.equal(targets(batch).hidden[1], expected)
            different += int((batch.wave != wave).any(1).sum())
    assert (different > 0) == (source != "augmented")


def test_validation_is_distorted_alike_each_time_and_training_is_not(data: Path) -> None:
    trainer = trainer_of(data, student(teacher={"experiment": "t", "input": "second"}))
    first, again = (torch.cat([b.distortions for b in trainer.plan.valid()]) for _ in range(2))
    assert torch.equal(first, again) and (first[:, -1] == 0).any()
    epochs = [
        {i: x for b in trainer.plan.batches(n, BEGIN) for i, x in zip(b.ids, b.distortions.tolist())} for n in (0, 1)
    ]
    assert epochs[0].keys() == epochs[1].keys() and epochs[0] != epochs[1]


def test_targets_of_a_changing_input_are_not_kept() -> None:
    with pytest.raises(ValueError, match=r"keep_targets needs teacher\.input: clean"):
        student(teacher={"experiment": "t", "input": "second", "keep_targets": True})


def test_an_experiment_without_distortions_has_the_identity_of_before() -> None:
    assert "distort" not in student(distort=None).identity()
    assert student().identity()["distort"]["snr"] == [10.0, 20.0]


ADVERSARY = {"hidden": {"layers": [1, 2]}, "adversary": {"lr_scale": 0.5}, "denoising": {"mels": 20}}
SECOND = {"experiment": "t", "input": "second"}
COARSE = {**SETTINGS["model"], "front_end": {**SETTINGS["model"]["front_end"], "layers": [[8, 40, 20], [8, 8, 8]]}}


def test_student_and_classifier_train_together_and_continue_after_a_kill(data: Path) -> None:
    experiment = student(model=COARSE, teacher=SECOND, objective=ADVERSARY, optim={"updates": 8, "lr": 0.01})
    whole = trainer_of(data, experiment)
    figures, before = [], {name: x.clone() for name, x in whole.step.named_parameters()}
    original = whole._update
    whole._update = lambda *arguments: figures.append(original(*arguments)) or figures[-1]  # type: ignore[method-assign]
    whole.run()
    assert {"adversary", "adversary_accuracy", "denoising", "hidden1"} <= set(figures[0])
    still = {n for n, x in whole.step.named_parameters() if torch.equal(x, before[n])}
    assert not any(name.startswith("objective.") for name in still)
    first = trainer_of(data, experiment, "killed")
    dies(first, 5, "_update")
    trainer = build_trainer(
        experiment, Folders(data, data, data, data), data / "killed", "native", ALONE, torch.device("cpu")
    )
    trainer.run()
    assert trainer.progress.updates == 8
    assert_same_training(data / "s", data / "killed")


def test_the_loss_of_validation_is_that_of_distillation_alone(data: Path) -> None:
    trainer, seen = trainer_of(data, student(model=COARSE, teacher=SECOND, objective=ADVERSARY)), dict[str, float]()
    trainer._draw = lambda monitor: None  # type: ignore[method-assign]
    loss = trainer._validate(SimpleNamespace(valid=lambda number, values, epoch: seen.update(values)))  # type: ignore[arg-type]
    parts = {name for name in seen if name.startswith("hidden")} | {"denoising"}
    assert loss == pytest.approx(sum(seen[name] for name in parts)) and 0 <= seen["adversary_accuracy"] <= 1
    assert seen["adversary"] > 0
