"""The rows of papers/003 as YAML files, at full and at mini size."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.config.experiment import Experiment
from distill.config.experiment_set import ExperimentSet
from distill.models.cost import parameters
from tests.unit.config.test_paper_001 import CONF

ROWS = {  # row -> what the teacher is given, whether the student's audio is distorted, further terms
    "cdm0": (None, False, set()),
    "cdm1": ("clean", True, set()),
    "cdm2_same": ("augmented", True, set()),
    "cdm2": ("second", True, set()),
    "cdm1_dat": ("clean", True, {"adversary"}),
    "cdm2_dat": ("second", True, {"adversary"}),
    "robust_distiller": ("clean", True, {"denoising"}),
}
SIZES = [pytest.param(CONF, id="full"), pytest.param(CONF / "mini", id="mini")]


@pytest.mark.parametrize("conf", SIZES)
@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_what_the_paper_says(conf: Path, row: str) -> None:
    experiment, (source, distorted, further) = Experiment.load(conf / f"{row}.yaml"), ROWS[row]
    plain = Experiment.load(conf / "cdm0.yaml")
    assert (experiment.stage, experiment.init, experiment.model) == (8, "hubert", plain.model)
    assert experiment.teacher and experiment.teacher.experiment == "hubert"
    assert source in (None, experiment.teacher.input) and (experiment.distort is not None) == distorted
    assert set(experiment.objective.terms) == {"regression"} | further and not experiment.recognises
    augment = experiment.augment
    assert not augment.volume_probability + augment.pitch_probability + augment.noise_probability
    if distorted:
        assert experiment.distort == Experiment.load(conf / "cdm1.yaml").distort
    if "adversary" in further:
        assert experiment.objective.adversary and experiment.objective.adversary.reversal == 0.01


def test_full_size_has_the_published_numbers() -> None:
    one, two, three = (Experiment.load(CONF / f"{name}.yaml") for name in ("cdm0_1", "cdm1", "cdm0_3"))
    millions = [parameters(each.model, 32)["trunk"] / 1e6 for each in (one, two, three)]
    assert millions == pytest.approx([16.4, 23.5, 30.6], abs=0.1), "without the heads, which the paper counts"
    assert {each.optim.updates for each in (one, two, three)} == {20_000}
    assert two.distort and two.distort.snr == (10, 20) and len(two.distort.names) == 7
    assert two.objective.regression and two.objective.regression.blocks == (4, 8, 12)


@pytest.mark.parametrize("conf", SIZES)
def test_fine_tuning_is_on_clean_audio_and_tests_are_distorted(conf: Path) -> None:
    tuned, teacher = (Experiment.load(conf / f"{name}.yaml") for name in ("cdm0_ft", "hubert_distorted"))
    assert (tuned.stage, tuned.init, tuned.distort, tuned.teacher) == (9, "cdm0", None, None)
    seen, unseen, room = tuned.decoding.conditions.values()
    known = Experiment.load(conf / "cdm1.yaml").distort
    assert known and seen == known == teacher.distort
    assert not {*unseen.names, *room.names} & {*known.names} - {"clean"} and "room" in room.names
    assert (teacher.stage, teacher.init) == (5, "hubert") and set(teacher.objective.terms) == {"hubert"}


def test_the_set_has_every_row_of_the_tables() -> None:
    settings = ExperimentSet.read(CONF / "sets/paper-003.yaml")
    rows = {label.split()[0].rstrip(",") for label in settings.tables[0].rows}
    paper = {"T1", "T1'", *(f"S{number}{prime}" for number in range(1, 9) for prime in ("", "'"))}
    assert rows - {"RobustDistiller"} == paper
    conditions = Experiment.load(CONF / "mini/cdm0_ft.yaml").decoding.conditions
    assert {name.partition(" ")[2] for name in settings.tables[0].sets} - {""} == {*conditions}
    assert Experiment.load(CONF / "mini/hubert_ft.yaml").decoding.conditions == conditions
