"""Experiments of stage 5: published fine-tuned, or pre-trained; shares of the data."""

from __future__ import annotations

import pytest

from distill.config.experiment import Experiment

PRETRAINED = {
    "stage": 5,
    "objective": {"mmi": {}, "ctc": {}},
    "model": {"ctc_output": True},
    "optim": {"updates": 3},
    "pretrained": "random",
}


def test_an_objective_makes_stage_5_a_training() -> None:
    published = Experiment.parse({"stage": 5, "pretrained": "hf:a/b"}, "toy")
    assert not published.trained and not published.supervised and published.recognises
    assert Experiment.parse(PRETRAINED, "toy").trained
    with pytest.raises(ValueError, match=r"give either optim\.updates or optim\.epochs"):
        Experiment.parse({**PRETRAINED, "optim": {}}, "toy")
    with pytest.raises(ValueError, match="for a pre-training give the terms of its objective"):
        Experiment.parse({"stage": 5}, "toy")


def test_pretraining_on_from_a_checkpoint_names_what_is_imported() -> None:
    with pytest.raises(ValueError, match="what init names, such as toy_init for the import of pretrained: hf:a/b"):
        Experiment.parse({**PRETRAINED, "pretrained": "hf:a/b", "name": "toy"}, "toy")
    with pytest.raises(ValueError, match="starts from pretrained: random, or"):
        Experiment.parse({**PRETRAINED, "pretrained": None}, "toy")
    assert Experiment.parse({**PRETRAINED, "pretrained": "hf:a/b", "init": "toy_init"}, "toy").trained


def test_hidden_states_alone_make_no_recogniser() -> None:
    student = {"stage": 8, "teacher": {"experiment": "t"}, "optim": {"updates": 3}, "objective": {"hidden": {}}}
    assert not Experiment.parse(student, "toy").recognises
    shared = {**student, "model": {"shared_head_dim": 1024}}
    assert Experiment.parse(shared, "toy").recognises and not Experiment.parse(shared, "toy").supervised
    assert Experiment.parse({**student, "objective": {"outputs": {}}}, "toy").recognises


def test_ctc_alone_trains_no_main_output() -> None:
    values = {**PRETRAINED, "objective": {"ctc": {}}}
    with pytest.raises(ValueError, match="nothing trains the main one, which is decoded; add mmi"):
        Experiment.parse(values, "toy")
    joint = {**values, "objective": {"ctc": {}, "transducer": {}}, "model": {"ctc_output": True, "transducer": {}}}
    with pytest.raises(ValueError, match=r"decoding\.methods: 1best.* of the main output, which no term"):
        Experiment.parse({**joint, "decoding": {"methods": ["1best", "transducer_beam"]}}, "toy")
    assert not Experiment.parse({**joint, "decoding": {"methods": ["transducer_beam"]}}, "toy").recognises


@pytest.mark.parametrize("setting", ({"data": {"share": 1.0}}, {"objective": {"mmi": {}, "ctc": {"start": 0}}}))
def test_defaults_of_later_settings_are_not_part_of_the_identity(setting: dict) -> None:
    assert (
        Experiment.parse({**PRETRAINED, **setting}, "toy").identity() == Experiment.parse(PRETRAINED, "toy").identity()
    )
    data = Experiment.parse({**PRETRAINED, "data": {"share": 0.1}}, "toy").identity()["data"]
    assert data["share"] == 0.1


@pytest.mark.parametrize("objective", [{"hubert": {}}, {"contrastive": {}}, {"bestrq": {}}])
def test_losses_of_masked_frames_need_a_mask(objective: dict) -> None:
    values = {**PRETRAINED, "model": {}, "objective": objective, **({"units": {}} if "hubert" in objective else {})}
    with pytest.raises(ValueError, match=r"are of masked frames, but model\.mask\.time_probability is 0"):
        Experiment.parse(values, "toy")
    assert Experiment.parse({**values, "model": {"mask": {"time_probability": 0.65}}}, "toy").trained
