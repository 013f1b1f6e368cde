"""The sets of egs/tables: shapes, updates and rates that make their rows comparable."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.config.experiment import Experiment
from distill.config.experiment_set import ExperimentSet
from distill.models.cost import parameters
from distill.recipe.experiment_set import SetRun

ROOT = Path(__file__).parents[3]
SETS = ROOT / "egs/tables/conf/sets"
PAPER = {"s1": 94, "s2": 44, "s3": 27, "s4": 23, "s5": 22}  # millions, of a teacher of 317


def trunk(experiment: Experiment) -> int:
    return parameters(experiment.model, 41)["trunk"]


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Experiment]:
    return dict(SetRun(ExperimentSet.read(SETS / "tables.yaml"), ROOT, tmp_path).experiments)


def test_students_have_the_papers_proportions(made: dict[str, Experiment]) -> None:
    teacher = trunk(made["teacher_hubert"])
    assert teacher > 8e6 and teacher / trunk(made["s5"]) > 12
    for name, millions in PAPER.items():
        assert trunk(made[name]) == trunk(made[f"{name}_stream"])
        assert teacher / trunk(made[name]) == pytest.approx(317 / millions, rel=0.15), name
    assert made["s5_stream"].model.streaming.chunk_frames == 48


def test_one_step_and_two_steps_have_equal_updates_and_peak_rates(made: dict[str, Experiment]) -> None:
    two, second = made["s5"].optim.updates + made["s5_stream"].optim.updates, made["s5_stream"].optim.updates
    single, short = made["single"], made["single_streaming"]
    assert (single.optim.updates, short.optim.updates) == (two, second)
    for each in (single, short, made["s5_stream"]):
        assert each.optim.lr == made["s5"].optim.lr and each.model == made["s5_stream"].model
        assert each.objective == made["s5"].objective
    assert single.init == short.init == made["s5"].init == "teacher_hubert"


def test_the_further_set_trains_what_they_share_alike(made: dict[str, Experiment], tmp_path: Path) -> None:
    more = SetRun(ExperimentSet.read(SETS / "tables-more.yaml"), ROOT, tmp_path / "more").experiments
    common = made.keys() & more.keys()
    assert common >= {"hubert", "teacher_hubert", "s5"}
    assert all(made[name].identity() == more[name].identity() for name in common)
    differences = {name for name in more if name.startswith("s5_") and trunk(more[name]) != trunk(made["s5"])}
    assert not differences and trunk(more["same_shape"]) == trunk(made["teacher_hubert"])
