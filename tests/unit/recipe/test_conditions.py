"""Test sets under distortions: folders of their own, the same audio for all, results that name the condition."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.config.distortions import Distort
from distill.config.experiment import Experiment
from distill.config.training import Augment
from distill.corpora.cut_sets import load_cuts
from distill.data.audio import read_audio
from distill.data.augment import utterance_rng
from distill.data.distortions import Distorter
from distill.models.checkpoint import load_recogniser
from distill.recipe import decoding
from distill.recipe.emissions import Run, compute
from distill.recipe.options import Recipe
from distill.recipe.training import training_stage
from distill.report import robustness
from distill.report.runs import read_runs
from tests.support.corpora import write_tone
from tests.support.results import training
from tests.support.tiny_recipe import Tiny

CONDITIONS = {
    "two": {},
    "crackle": {"steps": [["crackle"]]},
    "hall": {"steps": [["room"], ["hall"]], "noises": {"hall": "noise"}},
}


@pytest.fixture
def recipe(tiny: Tiny) -> Recipe:
    (tiny.data / "noise").mkdir()
    write_tone(tiny.data / "noise/hum.flac", 2.0)
    for name in ("teacher", "other"):
        yaml = tiny.conf / f"{name}.yaml"
        yaml.write_text(yaml.read_text() + f"decoding: {json.dumps({'conditions': CONDITIONS})}\n")
    folders = (tiny.conf, tiny.data, tiny.exp)
    return Recipe("tiny", *folders, None, 1, "cpu", "native", "phones", "ctc", False, False, (), ("teacher", "other"))


def test_each_condition_is_decoded_once_in_the_main_mode(recipe: Recipe) -> None:
    runs = decoding.runs(recipe.experiments(), ["test-clean"], "torch")
    distorted = {(run.experiment.name, run.mode, run.condition) for run in runs if run.condition}
    modes = {"teacher": "offline", "other": "streaming"}
    assert distorted == {(name, mode, condition) for name, mode in modes.items() for condition in CONDITIONS}
    folders = [[str(stage.out) for stage in decoding.stages(recipe, run).values()] for run in runs]
    assert len({name for names in folders for name in names}) == sum(map(len, folders))
    assert not any(run.condition for run in decoding.runs(recipe.experiments(), ["test-clean"], "int8"))


def test_conditions_may_be_of_some_test_sets_alone(recipe: Recipe) -> None:
    chosen = [replace_decoding(recipe.experiment("teacher"), condition_sets=("test-clean",))]
    sets = ["test-clean", "test-other"]
    runs = decoding.runs(chosen, sets, "torch")
    assert {run.cut_set for run in runs if run.condition} == {"test-clean"}
    assert {run.cut_set for run in runs if not run.condition} == {"test-clean", "test-other"}
    every = settings_of(recipe, decoding.runs(recipe.experiments(), sets, "torch"))
    assert settings_of(recipe, runs).items() <= every.items()
    with pytest.raises(ValueError, match=r"teacher: decoding\.condition_sets: no test set 'test-clean'"):
        decoding.check_condition_sets(chosen, ["test-other", "test"])


def settings_of(recipe: Recipe, runs: list[Run]) -> dict[str, str]:
    """Of each decode folder what makes its results valid."""
    stages = [stage for run in runs for stage in decoding.stages(recipe, run).values()]
    return {str(stage.out): json.dumps(stage.settings, sort_keys=True) for stage in stages}


def test_recorded_noise_is_part_of_what_is_made_with_it(recipe: Recipe) -> None:
    augment = Augment(noise_part="noise", noise_probability=0.5)
    noisy = recipe.experiment("teacher").model_copy(update={"augment": augment})
    plain = noisy.model_copy(update={"augment": augment.model_copy(update={"noise_probability": 0.0})})
    run = Run(noisy, "test-clean", "offline", "torch", "hall")

    def settings() -> list[str]:
        (decoded,) = settings_of(recipe, [run]).values()
        return [decoded, *(json.dumps(training_stage(recipe, each).settings) for each in (noisy, plain))]

    before = settings()
    (recipe.data_dir / "noise/notes.txt").write_text("not audio")
    assert settings() == before
    write_tone(recipe.data_dir / "noise/more/hum.wav", 1.0)
    assert [one == other for one, other in zip(settings(), before, strict=True)] == [False, False, True]


def replace_decoding(experiment: Experiment, **values: object) -> Experiment:
    return experiment.model_copy(update={"decoding": experiment.decoding.model_copy(update=values)})


@pytest.mark.parametrize("name", ["teacher", "other"])
def test_the_model_is_given_each_utterance_distorted_by_its_name_alone(recipe: Recipe, name: str) -> None:
    experiment = recipe.experiment(name)
    mode = "streaming" if name == "other" else "offline"
    plain, emissions = (compute(recipe, Run(experiment, "test-clean", mode, "torch", c)) for c in ("", "hall"))
    distorter, model = (
        Distorter(experiment.decoding.conditions["hall"], recipe.data_dir),
        load_recogniser(recipe.exp(name))[0],
    )
    for cut in load_cuts(recipe.cuts, ["test-clean"]):
        wave, _ = distorter(read_audio(cut), utterance_rng(0, 0, cut.id))
        with torch.no_grad():
            output = model(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
        expected = output.logits[0, : int(output.lengths[0])].log_softmax(1).numpy()
        np.testing.assert_allclose(emissions.scores[cut.id], expected, atol=1e-3)
        assert np.abs(plain.scores[cut.id] - expected).max() > 0.1
    assert emissions.info["condition"] == "hall" and "condition" not in plain.info


def test_results_lie_in_folders_of_their_own_and_name_the_condition(recipe: Recipe) -> None:
    experiments = recipe.experiments()
    for run in decoding.runs(experiments, ["test-clean"], "torch"):
        if run.mode != "offline" or run.experiment.name == "teacher":
            one = run.experiment.model_copy(
                update={"decoding": run.experiment.decoding.model_copy(update={"methods": ("1best",)})}
            )
            decoding.decode(recipe, run._replace(experiment=one))
    for experiment in experiments:
        training(recipe.exp(experiment.name), 6, 16 if experiment.name == "other" else 0)
    found = {run.name: run for run in read_runs(recipe.exp_dir)}
    assert [d.condition for d in found["teacher"].decodings] == [None]
    assert {d.condition for d in found["other"].distorted} == {*CONDITIONS}
    path = recipe.exp("other") / "decode_test-clean_hall_streaming_1best"
    assert json.loads((path / "wer.json").read_text())["condition"] == "hall"
    assert not list(recipe.exp("other").glob("log_probs_*_hall*"))
    table = robustness.table([*found.values()])
    assert table.head == ("model", "mode", "set", "clean", "crackle", "hall", "two")
    assert [row[:3] for row in table.rows] == [
        ("other", "streaming", "test-clean"), ("teacher", "offline", "test-clean"),
    ]  # fmt: skip
    assert all("[" in cell for row in table.rows for cell in row[3:])
    page = (path / "errors.html").read_text()
    assert "test-clean, hall · streaming" in page and "audio/test-clean" not in page and "audio/flac" in page


def test_conditions_change_no_other_result(recipe: Recipe) -> None:
    run = Run(recipe.experiment("teacher"), "test-clean", "offline")
    without = run.experiment.model_copy(
        update={"decoding": run.experiment.decoding.model_copy(update={"conditions": {}})}
    )
    ours, theirs = (decoding.stages(recipe, run._replace(experiment=e)) for e in (run.experiment, without))
    assert [stage.identity() for stage in ours.values()] == [stage.identity() for stage in theirs.values()]
    assert "conditions" not in without.decoding.identity()
    assert run.experiment.identity() == without.identity()
    changed = run.experiment.decoding.model_copy(update={"conditions": {"two": Distort(snr=(0, 0))}})
    distorted = run._replace(condition="two")
    other = distorted._replace(experiment=run.experiment.model_copy(update={"decoding": changed}))
    (before,), (after,) = (decoding.stages(recipe, each).values() for each in (distorted, other))
    assert before.out == after.out and before.identity() != after.identity()


def test_wrong_conditions_are_errors(recipe: Recipe, tmp_path: Path) -> None:
    yaml = tmp_path / "conf/teacher.yaml"
    before = yaml.read_text().rpartition("decoding:")[0]
    for conditions, message in (
        ("{a: {}, a: {}}", "key 'a' is given twice"),
        ("{a: {steps: [[him]]}}", r"decoding\.conditions\.a: steps: no distortion 'him'; did you mean 'hum'"),
        ("{a/b: {}}", "must be a name"),
        ("{a: {snr: [20, 10]}}", "lower end first"),
        ("[two]", "must be a mapping|valid dictionary"),
    ):
        yaml.write_text(f"{before}decoding: {{conditions: {conditions}}}\n")
        with pytest.raises(ValueError, match=message):
            Experiment.load(yaml)
    absent = replace(recipe, data_dir=tmp_path / "elsewhere")
    yaml.write_text(f"{before}decoding: {json.dumps({'conditions': CONDITIONS})}\n")
    with pytest.raises(FileNotFoundError, match="no noise folder"):
        Distorter(recipe.experiment("teacher").decoding.conditions["hall"], absent.data_dir)
