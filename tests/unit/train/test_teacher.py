"""Codewords of a teacher, and a student that learns from all that papers/000 compares."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill.batch import BEGIN
from distill.config.experiment import Experiment
from distill.corpora.cut_sets import write_cuts
from distill.data.units import INVENTORY, Inventory, Origin
from distill.models import checkpoint
from distill.models.codes import CentroidCodes, CodeHead
from distill.models.recogniser import Recogniser
from distill.recipe.units import with_units
from distill.train.import_teacher import write_random
from distill.train.loop import Trainer
from distill.train.setup import Folders, build_trainer, stored_heads
from distill.train.teacher import load_codes
from tests.support.training import ALONE, SETTINGS, write_letters, write_speech

UNITS = {"of": "t", "layer": 1, "clusters": 5}
TERMS = {"front": {"updates": 1}, "regression": {"blocks": [1, 2], "start": 1}, "discriminative": {"start": 1}}


def student(**changes: Any) -> Experiment:
    values = {**SETTINGS, "name": "s", "stage": 8, "teacher": {"experiment": "t"}, "objective": TERMS, **changes}
    return Experiment.parse({**values, "data": {"max_duration": 1.5, "workers": 0}}, "test")


def write_teacher(
    folder: Path, model: dict = SETTINGS["model"], terms: dict = SETTINGS["objective"], **objective: torch.Tensor
) -> None:
    """A teacher with random weights, and parameters of its own objective."""
    (folder / "t").mkdir()
    settings = {**SETTINGS, "name": "t", "model": model, "objective": terms}
    write_random(Experiment.parse(settings, "test"), write_letters(folder).outputs, folder / "t")
    content = checkpoint.load(folder / "t/epoch-0.pt")
    checkpoint.save(folder / "t/epoch-0.pt", {**content, "objective": objective})


def teacher_of(folder: Path) -> Recogniser:
    return checkpoint.load_recogniser(folder / "t")[0]


def write_units(folder: Path, experiment: Experiment) -> torch.Tensor:
    """The inventory of an experiment's units, of its teacher in the folder; returns its centroids."""
    assert experiment.units is not None
    model = teacher_of(folder)
    weights = checkpoint.digest(model.settings.changed(), model.state_dict().items())
    centroids, origin = torch.randn(5, 8), Origin.of_settings(experiment.units, ("labelled",), weights)
    path = folder / experiment.units_folder / INVENTORY
    path.parent.mkdir(parents=True)
    Inventory(centroids.numpy(), origin).write(path)
    return centroids


def trainer_of(experiment: Experiment, folder: Path) -> Trainer:
    """The trainer of a student of the teacher in a folder, on speech that is written there."""
    (folder / "cuts").mkdir()
    for part in ("labelled", "dev"):
        write_cuts(write_speech(folder / "speech", 6), folder / f"cuts/{part}.jsonl.gz")
    (folder / "s").mkdir()
    folders = Folders(folder, folder, folder, folder)
    return build_trainer(experiment, folders, folder / "s", "native", ALONE, torch.device("cpu"))


def test_codewords_are_those_of_the_pre_training(tmp_path: Path) -> None:
    head = CodeHead(8, 4, 6)
    write_teacher(tmp_path, **{f"hubert.head.{name}": x for name, x in head.state_dict().items()})
    codes = load_codes(student(), teacher_of(tmp_path), tmp_path, tmp_path / "units")
    hidden = torch.randn(2, 3, 8)
    assert codes.clusters == 6 and torch.equal(codes(hidden), head(hidden))


def test_codewords_are_centroids_of_units(tmp_path: Path) -> None:
    experiment = student(units=UNITS)
    write_teacher(tmp_path)
    teacher, centroids = teacher_of(tmp_path), write_units(tmp_path, experiment)
    codes = load_codes(experiment, teacher, tmp_path, tmp_path)
    assert isinstance(codes, CentroidCodes) and torch.equal(codes.centroids, centroids)
    assert (codes.clusters, codes.block) == (5, 1)
    with pytest.raises(ValueError, match=r"units.of is mfcc, but codewords are of its teacher, t"):
        load_codes(student(units={"of": "mfcc"}), teacher, tmp_path, tmp_path)


def test_centroids_of_other_states_are_refused(tmp_path: Path) -> None:
    experiment = student(units=UNITS)
    write_teacher(tmp_path)
    write_units(tmp_path, experiment)
    teacher = teacher_of(tmp_path)
    with torch.no_grad():
        teacher.head.output.bias += 1
    with pytest.raises(ValueError, match=r"units of another origin \(weights: expected"):
        load_codes(experiment, teacher, tmp_path, tmp_path)


def test_a_teacher_without_codewords_is_named(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    with pytest.raises(ValueError, match=r"its teacher t has no codewords.* give units: \{of: t, layer: …\}"):
        load_codes(student(), teacher_of(tmp_path), tmp_path, tmp_path)


def test_units_are_those_of_a_teacher_without_codewords(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three quarters of its depth; a teacher with codewords, and units that are given, stay. It is read once."""
    caplog.set_level("INFO")
    recipe = SimpleNamespace(exp=lambda name: tmp_path / name)
    assert with_units(recipe, student()).units is None, "the teacher is not trained yet"
    write_teacher(tmp_path)
    read, load = [], checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda path: read.append(path.name) or load(path))
    units = with_units(recipe, student()).units
    assert units is not None and (units.of, units.layer, units.clusters) == ("t", 1, 500)
    assert read == ["epoch-0.pt"]
    assert "its teacher t has no codewords, so that 500 are found by k-means of its block 1" in caplog.text
    assert with_units(recipe, student(units=UNITS)).units == student(units=UNITS).units
    head = {f"hubert.head.{name}": x for name, x in CodeHead(8, 4, 6).state_dict().items()}
    content = checkpoint.load(tmp_path / "t/epoch-0.pt")
    checkpoint.save(tmp_path / "t/epoch-0.pt", {**content, "objective": head})
    assert with_units(recipe, student()).units is None


def test_a_student_learns_front_end_hidden_states_and_codewords(tmp_path: Path) -> None:
    head = CodeHead(8, 4, 6)
    write_teacher(tmp_path, **{f"hubert.head.{name}": x for name, x in head.state_dict().items()})
    trainer = trainer_of(student(), tmp_path)
    batch, figures = next(trainer.plan.batches(0, BEGIN)), []
    for trainer.progress.updates in range(30):
        before = {name: x.clone() for name, x in trainer.step.model.named_parameters()}
        figures.append(trainer._update([batch], 0.01))
        if trainer.progress.updates == 0:
            now = trainer.step.model.named_parameters()
            changed = {".".join(name.split(".")[:2]) for name, x in now if not torch.equal(x, before[name])}
            assert changed == {"front_end.layers", "encoder.feature_norm"}
    assert set(figures[0]) == {"front", "loss", "gradient"}
    assert set(figures[1]) == {"regression2_1", "regression2_2", "discriminative", "loss", "gradient"}
    assert all(figures[-1][name] < figures[1][name] for name in figures[1] if name != "gradient")


@pytest.mark.parametrize("kept", [False, True], ids=["online", "stored"])
def test_a_student_learns_temporal_relations_and_attention(kept: bool, tmp_path: Path) -> None:
    write_teacher(tmp_path)
    teacher = {"experiment": "t", "input": "clean", "keep_targets": kept}
    trainer = trainer_of(
        student(objective={"temporal": {}, "attention": {"layers": [0, 2]}}, teacher=teacher), tmp_path
    )
    batch, figures = next(trainer.plan.batches(0, BEGIN)), []
    for trainer.progress.updates in range(12):
        figures.append(trainer._update([batch], 0.01))
    terms = {"layer0", "layer1", "layer2", "intra1", "intra2", "attention2"}
    assert set(figures[0]) == terms | {"loss", "gradient"}
    assert all(figures[-1][name] < figures[0][name] for name in ("loss", "layer0", "intra2"))


def test_stored_targets_are_those_of_single_precision(tmp_path: Path) -> None:
    """Trainings of any precision read them, whoever has stored them."""
    write_teacher(tmp_path)
    kept = {"experiment": "t", "input": "clean", "keep_targets": True}
    plan = trainer_of(student(objective={"temporal": {}}, teacher=kept), tmp_path).plan
    row, stored = next(plan.batches(0, BEGIN)).row(0), []
    for name, autocast in (("half", True), ("single", False)):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            stored.append(plan.teacher._stored(tmp_path / name, row))
    for key, value in stored[0].items():
        torch.testing.assert_close(value, stored[1][key], rtol=0, atol=0)


MASKED = {"experiment": "t", "masked": True}


TRANSDUCER = {"context": 2, "dim": 6, "joiner_dim": 7}


@pytest.mark.parametrize("predictor", ["stateless", "lstm"])
@pytest.mark.parametrize("kept", [False, True])
def test_a_student_learns_the_transducer_of_its_teacher(kept: bool, predictor: str, tmp_path: Path) -> None:
    """On texts: the teacher's own, of other widths, is along the best alignment; the main output is not read."""
    theirs = {**SETTINGS["model"], "transducer": {"dim": 5, "joiner_dim": 4}}
    write_teacher(tmp_path, model=theirs, terms={"mmi": {}, "transducer": {}})
    model = {**SETTINGS["model"], "transducer": {**TRANSDUCER, "predictor": predictor}}
    keeping = {"augment": {"volume_probability": 0, "noise_probability": 0, "pitch_probability": 0}} if kept else {}
    trainer = trainer_of(
        student(
            model=model, objective={"transducer": {}, "transducer_kl": {}}, **keeping,
            decoding={"methods": ["transducer_beam"]},
            teacher={"experiment": "t", "input": "clean", "keep_targets": kept},
        ),
        tmp_path,
    )  # fmt: skip
    before = {name: x.clone() for name, x in trainer.step.model.named_parameters()}
    for batch in [*trainer.plan.batches(0, BEGIN)] * 2:
        trainer._update([batch], 1e-2)
        assert trainer.plan.teacher is not None
        again = trainer.step(batch, trainer.plan.teacher(batch))
        assert [*again.terms] == ["transducer", "transducer_kl"] and not again.dropped.any()
        assert all(torch.isfinite(term.total) for term in again.terms.values())
    still = {name for name, x in trainer.step.model.named_parameters() if torch.equal(x, before[name])}
    assert still <= {"encoder.mask_embedding", "head.output.weight", "head.output.bias"}
    assert kept == any((tmp_path / "targets").rglob("*.safetensors"))


def test_masked_frames_are_learnt_from_the_whole_input_and_others_from_the_masked_one(tmp_path: Path) -> None:
    """MaskHuBERT (Jang et al. 2023): the teacher twice, its mask embedding in frames that the student masks."""
    model = {**SETTINGS["model"], "mask": {"time_probability": 0.5, "time_length": 2, "channel_probability": 0.5}}
    write_teacher(tmp_path)
    experiment = student(objective={"hidden": {"layers": [1, 2], "lower_weight": 0.1}}, teacher=MASKED, model=model)
    trainer = trainer_of(experiment, tmp_path)
    batch, teacher = next(trainer.plan.batches(0, BEGIN)), trainer.plan.teacher.model
    targets = trainer.plan.teacher(batch)
    hit = targets.masked
    assert 0 < hit.float().mean() < 1
    plain = teacher(batch.wave, batch.samples)
    teacher.encoder.projection.register_forward_hook(
        lambda _, __, x: torch.where(hit[..., None], teacher.encoder.mask_embedding, x)
    )
    masked = teacher(batch.wave, batch.samples)
    for block, found in targets.hidden.items():
        assert torch.equal(found[hit], plain.hidden[block][hit]) and torch.equal(
            found[~hit], masked.hidden[block][~hit]
        )
        assert not torch.equal(plain.hidden[block], masked.hidden[block])
    seen = []
    trainer.step.model.register_forward_hook(lambda _, __, output: seen.append(output))
    for training in (True, False):
        terms = trainer.step.train(training)(batch, targets).terms
        assert torch.equal(seen[-1].masked, hit), "the student's mask is the teacher's"
    assert (terms["hidden1"].weight, terms["hidden2"].weight) == (0.1, 1.0)
    figures = [trainer._update([batch], 0.01) for trainer.progress.updates in range(20)]
    assert figures[-1]["hidden2"] < figures[0]["hidden2"]


def test_targets_of_a_mask_are_not_kept() -> None:
    with pytest.raises(ValueError, match=r"keep_targets needs teacher\.masked: false"):
        student(teacher={**MASKED, "input": "clean", "keep_targets": True})
    with pytest.raises(ValueError, match=r"masked: true needs frames .* model\.mask\.time_probability is 0"):
        student(teacher=MASKED)


@pytest.mark.parametrize(("updates", "clusters", "kept"), [(0, 5, False), (7, 5, True), (7, 6, False)])
def test_codewords_go_on_with_the_units_that_they_were_trained_on(
    updates: int, clusters: int, kept: bool, tmp_path: Path
) -> None:
    """An imported checkpoint was trained on none of ours, whatever settings its folder has."""
    stored = {"hubert.head.codewords": torch.ones(5, 3), "hubert.head.projection.weight": torch.ones(3, 8)}
    write_teacher(tmp_path, **stored)
    content = checkpoint.load(tmp_path / "t/epoch-0.pt")
    content["experiment"] |= {"units": student(units=UNITS).resolved()["units"]}
    checkpoint.save(tmp_path / "t/epoch-0.pt", {**content, "progress": {"updates": updates}})
    goes_on = student(init="t", units={**UNITS, "clusters": clusters})
    found = stored_heads(goes_on, "t", Folders(tmp_path, tmp_path, tmp_path, tmp_path))
    assert found.keys() == stored.keys() - (set() if kept else {"hubert.head.codewords"})
