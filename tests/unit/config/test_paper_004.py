"""Students of papers/004 are YAMLs of egs/librispeech/conf: sizes, multiply-adds, recipe, and losses of its table 1."""

from __future__ import annotations

import pytest

from distill.config.experiment import Experiment
from distill.models.cost import parameters
from distill.models.macs import SUPERB_SAMPLES, superb_macs
from tests.unit.config.test_paper_001 import CONF, load

TABLE_1 = {
    "star": {"temporal"}, "star_layer": {"temporal"}, "star_intra": {"temporal"}, "star_attention": {"attention"},
    "star_last": {"attention"}, "star_all": {"temporal", "attention"},
}  # fmt: skip


@pytest.mark.parametrize(("name", "millions"), [("star", 22.31), ("star_l", 26.63), ("star_s", 9.01)])
def test_students_have_the_published_counts(name: str, millions: float) -> None:
    assert round(parameters(load(name).model, 43)["trunk"] / 1e6, 2) == millions


@pytest.mark.parametrize(("name", "giga"), [("star", 463.5), ("star_l", 511.9), ("hubert", 1669)])
def test_multiply_adds_are_the_papers(name: str, giga: float) -> None:
    assert superb_macs(load(name).model) / 1e9 == pytest.approx(giga, rel=5e-3)


@pytest.mark.parametrize("name", ["star", "star_l", "star_s"])
def test_the_recipe_is_the_papers(name: str) -> None:
    experiment = load(name)
    optim, encoder = experiment.optim, experiment.model.encoder
    assert (experiment.stage, experiment.init, experiment.units, experiment.recognises) == (8, None, None, False)
    assert (optim.lr, optim.betas, optim.eps, optim.epochs) == (1e-3, (0.9, 0.98), 1e-6, 100)
    assert (optim.phases, optim.decay, optim.final_scale) == ((0.05, 0, 0.95), "cosine", 0)
    dropouts = encoder.dropout, encoder.attention_dropout, encoder.activation_dropout, encoder.input_dropout
    assert dropouts == (0.1, 0.1, 0.1, 0.05) and not encoder.layer_drop and encoder.layer_grad_scale
    assert (encoder.layers, encoder.heads, encoder.norm_first) == (12, 12, False)
    assert not experiment.model.mask.time_probability
    assert experiment.objective.teacher_blocks(12, 12) == [*range(13)]


@pytest.mark.parametrize("name", TABLE_1)
def test_the_losses_of_table_1_are_of_students_of_one_shape(name: str) -> None:
    experiment, star, dt = (Experiment.load(CONF / "mini" / f"{each}.yaml") for each in (name, "star", "dt"))
    assert experiment.objective.terms.keys() == TABLE_1[name]
    assert (experiment.model, experiment.optim, experiment.init) == (star.model, dt.optim, dt.init)
    assert parameters(star.model, 43)["trunk"] == pytest.approx(parameters(dt.model, 43)["trunk"], rel=0.01)
    pairs = {
        "star_last": {5: 5},
        "star_attention": {i: i for i in range(1, 6)},
        "star_all": {i: i for i in range(1, 6)},
    }
    assert experiment.objective.attention_map(5) == pairs.get(name, {})
    tuned = Experiment.load(CONF / "mini/star_ft.yaml", [f"init={name}"])
    assert tuned.model.encoder == experiment.model.encoder and tuned.objective.terms.keys() == {"mmi"}


def test_baselines_have_the_published_counts() -> None:
    """MaskHuBERT's are with its projections to the teacher's width, whose biases the term `hidden` has not."""
    distil, mask = load("distilhubert"), load("maskhubert")
    assert round(parameters(distil.model, 43)["trunk"] / 1e6, 2) == 23.49
    projections = 12 * (480 + 1) * 768
    assert round((parameters(mask.model, 43)["trunk"] + projections) / 1e6, 2) == 26.64
    assert mask.objective.terms["hidden"].layer_map(12) == {i: i for i in range(1, 13)}
    assert mask.teacher and mask.teacher.masked and mask.model.mask.time_probability == 0.8
    assert distil.model.encoder.feature_grad_mult == 0.1 and not distil.objective.terms.keys() - {"regression"}
    assert distil.objective.teacher_blocks(2, 12) == [4, 8, 12] and distil.init == "hubert"


def test_further_baselines_have_the_published_counts() -> None:
    """ARMHuBERT's are with its projections, FitHuBERT's with a second upsampling and the last block's projection."""
    fit, arm, light = (load(name) for name in ("fithubert", "armhubert_s", "lighthubert"))
    upsampling, projection = 2 * 480 * 480 + 480, (480 + 1) * 768
    assert round((parameters(fit.model, 43)["trunk"] + 2 * upsampling + projection) / 1e6, 2) == 22.49
    assert round((parameters(arm.model, 43)["trunk"] + 12 * (432 + 1) * 768) / 1e6, 2) == 22.39
    assert parameters(light.model, 43)["trunk"] == 26_873_344
    assert arm.teacher and arm.teacher.masked and arm.model.mask.time_probability == 0.8
    assert fit.objective.teacher_blocks(12, 12) == [*range(1, 13)] and light.objective.teacher_blocks(12, 12) == [
        *range(5, 13)
    ]


def test_multiply_adds_of_baselines_are_the_papers() -> None:
    """ARMHuBERT-S has 449.4 G with its projections, and without scores of taken maps, which are made again here."""
    assert superb_macs(load("lighthubert").model) / 1e9 == pytest.approx(860.7, rel=6e-3)
    model = load("armhubert_s").model
    frames = [model.front_end.frames(samples) for samples in SUPERB_SAMPLES]
    scores, projections = 6 * 432 * sum(count**2 for count in frames), 12 * 432 * 768 * sum(frames)
    assert (superb_macs(model) - scores + projections) / 1e9 == pytest.approx(449.4, rel=5e-3)


@pytest.mark.parametrize("name", ["fithubert", "armhubert", "lighthubert"])
def test_mini_baselines_are_as_large_as_the_student_of_star(name: str) -> None:
    experiment, star = (Experiment.load(CONF / "mini" / f"{each}.yaml") for each in (name, "star"))
    assert parameters(experiment.model, 43)["trunk"] == pytest.approx(parameters(star.model, 43)["trunk"], rel=0.03)
    assert experiment.optim == star.optim and experiment.model.front_end == star.model.front_end
