"""Sets of experiments: their combinations, names and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.config.experiment_set import ExperimentSet, ResultTable

EGS = Path(__file__).parents[3] / "egs"
PAIR = {"a": {}, "b": {}}


def with_table(**values: Any) -> dict[str, Any]:
    return {"experiments": PAIR, "tables": [{"title": "t", "rows": {"A": "a"}, **values}]}


def made(tmp_path: Path, **values: Any) -> ExperimentSet:
    path = tmp_path / "some.yaml"
    path.write_text(yaml.safe_dump({"title": "T", "corpus": "librispeech", **values}))
    return ExperimentSet.read(path)


def test_each_combination_is_an_experiment(tmp_path: Path) -> None:
    row = {
        "for": {"kind": ["dt", "sw"], "share": {"": 1.0, "_10": 0.1}},
        "base": "{kind}_ft.yaml",
        "data": {"share": "{share}"},
        "description": "{kind} on {share} of the labels, {other}",
        "objective": {"layers": ["{share}", 3]},
    }
    every = dict(made(tmp_path, experiments={"x": {}, "{kind}_ft{share}": row}).each())
    assert list(every) == ["x", "dt_ft", "dt_ft_10", "sw_ft", "sw_ft_10"]
    assert every["sw_ft_10"] == {
        "base": "sw_ft.yaml",
        "data": {"share": 0.1},
        "description": "sw on 0.1 of the labels, {other}",
        "objective": {"layers": [0.1, 3]},
    }


@pytest.mark.parametrize(
    "values, message",
    [
        ({"experiments": {"{x}": {"for": {"x": ["a", "a"]}}}}, "'a' must be a name, given once"),
        ({"experiments": {"a b": {}}}, "'a b' must be a name"),
        ({"experiments": PAIR, "compared": [["a", "c"]]}, "no experiment 'c'; there are: a, b"),
        ({"experiments": PAIR, "tables": [{"title": "t", "rows": {"A": "a"}, "columns": {"": "{row}_ft"}}]}, "'a_ft'"),
        (with_table(methods={"B": "1bset"}, columns={"B": "{row}"}), "tables.0.methods.B: must be '1best', 'greedy'"),
        (with_table(methods={"A": "1best"}, columns={"B": "{row}"}), "methods: no column 'A'; there are: B"),
        (with_table(methods={"": "greedy"}, figures=["accuracy"]), "methods are of error rates"),
        (with_table(tasks=["KS two", "KWS"]), "tables.0: tasks: 'KWS' is not a task of SUPERB; did you mean 'KS'?"),
        ({"experiments": PAIR, "seeds": [0, 0]}, "seeds"),
        ({"experiments": PAIR, "seeds": []}, "seeds"),
        (
            {"experiments": PAIR, "settings": ["seed=5"]},
            "settings: seed is given by the set, to each",
        ),
        ({"experiments": PAIR, "once": ["c"]}, "once: no experiment 'c'; there are: a, b"),
        ({"experiments": PAIR, "shared": ["a"], "once": ["a"]}, "once: a is shared already"),
        ({"experiments": PAIR, "stages": [9]}, "stages"),
        ({"experiments": PAIR, "tabels": []}, "unknown key 'tabels'; did you mean 'tables'"),
    ],
)
def test_wrong_sets_are_errors(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"some\.yaml") as error:
        made(tmp_path, **values)
    assert message in str(error.value)


def test_an_overview_has_some_of_the_rows() -> None:
    table = {"title": "T", "rows": {"A": "a", "B": "b"}}
    assert ResultTable.model_validate(table).short.rows == {"A": "a", "B": "b"}
    assert ResultTable.model_validate({**table, "overview": ["B"]}).short.rows == {"B": "b"}
    assert not ResultTable.model_validate({**table, "overview": []}).short.rows
    for key, value in (("overview", ["C"]), ("paper", {"C": "1"})):
        with pytest.raises(ValueError, match=f"{key}: no row 'C'"):
            ResultTable.model_validate({**table, key: value})


@pytest.mark.parametrize("path", sorted(EGS.glob("*/conf/sets/*.yaml")), ids=lambda path: path.stem)
def test_sets_of_the_recipes_can_be_run(path: Path, tmp_path: Path) -> None:
    from distill.recipe.experiment_set import SetRun, levels

    run = SetRun(ExperimentSet.read(path), EGS.parent, tmp_path)
    assert run.settings.corpus == path.parents[2].name
    assert sum(map(len, levels(run.experiments))) == len(run.experiments)
