"""Every experiment of papers/000 is a YAML of egs/librispeech/conf: students, losses, front-ends, fine-tuning."""

from __future__ import annotations

from itertools import product

import pytest

from distill.config.experiment import Experiment
from distill.models.cost import parameters
from tests.unit.config.test_paper_001 import CONF, load

MILLIONS = {"dt": 22.9, "sw": 23.5}  # the paper's sizes are not known; DistilHuBERT's is 23.49, FitHuBERT's 22.9
FRONT_ENDS = ("", "_fbank", "_fbank_two")
STUDENTS = [f"{shape}{loss}{front}" for shape, loss, front in product(MILLIONS, ("", "_disc"), FRONT_ENDS)]
TUNED = [f"{name}_ft" for name in STUDENTS]
SHARES = {"dt_ft_10h": 0.1, "dt_ft_1h": 0.01, "dt_disc_ft_10h": 0.1, "dt_disc_ft_1h": 0.01}


def size(name: str) -> int:
    return parameters(load(name).model, 32)["trunk"]


@pytest.mark.parametrize("shape", MILLIONS)
def test_fbank_has_17_percent_fewer_parameters(shape: str) -> None:
    assert size(shape) / 1e6 == pytest.approx(MILLIONS[shape], abs=0.05)
    assert round(100 * (1 - size(f"{shape}_fbank") / size(shape))) == 17
    fbank, teacher = load(f"{shape}_fbank").model.front_end, load("hubert").model.front_end
    assert (fbank.hop, fbank.layers[-1][0]) == (teacher.hop, teacher.layers[-1][0]), "frames are compared one to one"


@pytest.mark.parametrize("name", STUDENTS)
def test_every_student_learns_without_transcripts(name: str) -> None:
    experiment, teacher = load(name), load("hubert")
    assert (experiment.stage, experiment.init) == (8, "hubert")
    assert experiment.teacher and experiment.teacher.experiment == "hubert"
    assert experiment.data.train == ("labelled", "unlabelled") and not experiment.supervised
    assert not experiment.recognises
    assert experiment.objective.teacher_blocks(experiment.model.encoder.layers, teacher.model.encoder.layers) == [
        4,
        8,
        12,
    ]
    terms = experiment.objective.terms
    expected = {"regression"} | ({"discriminative"} if "disc" in name else set())
    first = {"front"} if name.endswith("two") else set()
    assert set(terms) == expected | first
    for done, on in ((0, first or expected), (20_000, expected), (experiment.optim.updates - 1, expected)):
        assert {key for key, term in terms.items() if term.on(done)} == on
    assert (experiment.units is not None) == ("disc" in name)
    assert experiment.optim.updates - (terms["front"].updates if first else 0) == 200_000


@pytest.mark.parametrize(
    ("name", "updates", "masked", "term"),
    [
        ("hubert1", 250_000, 0.8, "hubert"),
        ("hubert2", 400_000, 0.8, "hubert"),
        ("wav2vec2", 400_000, 0.65, "contrastive"),
    ],
)
def test_teachers_are_pre_trained_from_random_weights_as_published(
    name: str, updates: int, masked: float, term: str
) -> None:
    made, published = load(name), load("hubert")
    assert (made.stage, made.pretrained, made.init, made.frozen.get("encoder", 0)) == (5, "random", None, 0)
    assert size(name) == size("hubert") and made.model.front_end == published.model.front_end
    assert made.objective.terms.keys() == {term} and made.data.train == ("labelled", "unlabelled")
    optim, encoder = made.optim, made.model.encoder
    assert (optim.updates, optim.lr, optim.betas, optim.eps) == (updates, 5e-4, (0.9, 0.98), 1e-6)
    assert (optim.phases, optim.final_scale, optim.weight_decay) == ((0.08, 0, 0.92), 0, 0.01)
    assert (made.model.mask.time_probability, made.model.mask.time_length) == (masked, 10)
    assert (encoder.layer_drop, encoder.feature_grad_mult, encoder.dropout) == (0.05, 0.1, 0.1)


def test_dice_hubert_is_the_same_student_by_hubert_s_own_loss() -> None:
    dice, dt, tuned = load("dice"), load("dt"), load("dice_ft")
    assert (dice.stage, dice.init, dice.teacher, dice.optim) == (8, "hubert", None, dt.optim)
    assert dice.objective.terms.keys() == {"hubert"} and dice.model.encoder == dt.model.encoder
    assert dice.units and (dice.units.of, dice.units.layer, dice.units.clusters) == ("hubert", 9, 500)
    assert dice.model.mask.time_probability == 0.8 and (tuned.init, tuned.teacher) == ("dice", None)


@pytest.mark.parametrize("name", [*TUNED, *SHARES])
def test_every_student_is_fine_tuned_as_a_whole_on_transcripts(name: str) -> None:
    experiment = load(name)
    student = load(experiment.init or "")
    assert experiment.init == name.rpartition("_ft")[0] and student.name in STUDENTS
    assert (experiment.stage, experiment.teacher, experiment.units, experiment.frozen) == (9, None, None, {})
    assert experiment.data.train == ("labelled",) and experiment.data.share == SHARES.get(name, 1.0)
    assert set(experiment.objective.terms) == {"mmi"} and experiment.recognises
    masked = student.model.model_copy(update={"mask": experiment.model.mask})
    assert experiment.model == masked and masked.mask.time_probability > 0


def test_the_teacher_is_taken_over_as_it_is_pre_trained() -> None:
    teacher = load("hubert")
    assert not teacher.trained and not teacher.recognises and teacher.pretrained == "hf:facebook/hubert-base-ls960"
    with pytest.raises(ValueError, match=r"decoding\.methods: none are of a teacher that is not trained"):
        Experiment.load(CONF / "dt_ft.yaml", ["decoding.methods=[]"])
