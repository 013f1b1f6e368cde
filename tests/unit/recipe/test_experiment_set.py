"""The runner of sets: order, calls of run.sh, what is done."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distill.config.experiment import Experiment
from distill.config.experiment_set import ExperimentSet, ResultTable
from distill.recipe.experiment_set import Calls, SetRun, levels
from tests.support.results import decoding, training
from tools import experiments

RUN_SH = """#!/usr/bin/env python3
import json, pathlib, sys
root = pathlib.Path(__file__).parents[2]
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with (root / "calls").open("a") as file:
    file.write(json.dumps(options) + "\\n")
pathlib.Path(options["--data-dir"], "cuts").mkdir(parents=True, exist_ok=True)
pathlib.Path(options["--data-dir"], "num").mkdir(exist_ok=True)
sys.exit((root / "fails").exists() and options.get("--experiment") == "ft")
"""
PRE = (
    "stage: 5\npretrained: random\nunits: {of: mfcc}\nobjective: {hubert: {}}\nmodel: {mask: {time_probability: 0.5}}\n"
)
YAML = {
    "pre": PRE,
    "ft": "stage: 6\ninit: pre\nobjective: {alpha: 1, beta: 1}\noptim: {updates: 10}\ndata: {max_duration: 36}\n",
    "graphs": "{}\n",
}


@pytest.fixture
def run(tmp_path: Path) -> SetRun:
    conf = tmp_path / "egs/some/conf"
    conf.mkdir(parents=True)
    for name, text in YAML.items():
        (conf / f"{name}.yaml").write_text(text)
    (conf.parent / "run.sh").write_text(RUN_SH)
    (conf.parent / "run.sh").chmod(0o755)
    rows = {"ft": {}, "pre": {"optim": {"updates": 20}}, "ft_10": {"base": "ft.yaml", "data": {"share": 0.1}}}
    settings = ExperimentSet(
        name="s", title="T", corpus="some", seeds=(3, 5), experiments=rows, options={"download": "false"}
    )
    return SetRun(settings, tmp_path, tmp_path / "work", nj=2)


def calls(run: SetRun) -> list[dict[str, str]]:
    return [json.loads(line) for line in (run.root / "calls").read_text().splitlines()]


def test_experiments_stand_after_what_they_start_from(run: SetRun) -> None:
    assert list(levels(run.experiments)) == [["pre"], ["ft", "ft_10"]]
    assert run.experiments["ft_10"].data.share == 0.1 and run.experiments["pre"].optim.updates == 20
    assert (run.conf / "graphs.yaml").is_file()


def test_a_circle_is_an_error(run: SetRun) -> None:
    circle = run.experiments | {"pre": run.experiments["pre"].model_copy(update={"init": "ft"})}
    with pytest.raises(ValueError, match="circle: ft, pre, ft_10"):
        list(levels(circle))


def test_every_seed_has_experiments_and_what_they_make_of_its_own(run: SetRun) -> None:
    run.run(1)
    first, *others = calls(run)
    assert first["--stop-stage"] == "4" and first["--nj"] == "2" and first["--download"] == "false"
    assert set(first["--experiment"].split(",")) == {"ft", "pre", "ft_10"}
    each = [("5", "5", "pre"), ("5", "6", "ft,ft_10"), ("10", "10", "ft,ft_10")]
    assert called(others) == [(seed, *call) for seed in (3, 5) for call in each]
    assert seed_of(run, 3, "pre") == 3 and seed_of(run, 5, "pre") == 5
    data = run.folder / "seed-3/data"
    assert {c["--data-dir"] for c in others} == {str(data), str(run.folder / "seed-5/data")}
    assert (data / "cuts").resolve() == run.folder / "data/cuts" and (data / "num").resolve() == data / "num"


def called(calls: list[dict[str, str]]) -> list[tuple[int, str, str, str]]:
    """Seed, stages and experiments of calls."""
    where = [Path(each["--exp-dir"]).parent.name.removeprefix("seed-") for each in calls]
    return [(int(seed), c["--stage"], c["--stop-stage"], c["--experiment"]) for seed, c in zip(where, calls)]


def seed_of(run: SetRun, seed: int, name: str) -> int:
    """What an experiment's YAML for a seed's calls has."""
    return Experiment.load(run.exp(seed).with_name("conf") / f"{name}.yaml").seed


def test_what_is_shared_is_trained_once_and_linked(run: SetRun) -> None:
    shared = SetRun(run.settings.model_copy(update={"shared": ("pre",)}), run.root, run.folder)
    units = shared.exp(3).with_name("data") / "units" / units_of(shared)
    for path in (shared.exp(3) / "pre", units):
        path.mkdir(parents=True)
        (path / ".done").touch()
    shared.run(1)
    own = [("5", "6", "ft,ft_10"), ("10", "10", "ft,ft_10")]
    assert called(calls(run)[1:]) == [(3, "5", "5", "pre"), *((seed, *call) for seed in (3, 5) for call in own)]
    assert seed_of(shared, 5, "pre") == 3 and seed_of(shared, 5, "ft") == 5
    assert (shared.exp(5) / "pre").resolve() == shared.exp(3) / "pre"
    assert (shared.exp(5).with_name("data") / "units" / units.name).resolve() == units
    assert not (shared.exp(5).with_name("data") / "num").is_symlink()
    targets = {(shared.exp(seed).with_name("data") / "targets").resolve() for seed in (3, 5)}
    assert targets == {shared.folder / "data/targets"}
    assert next(row[1:3] for row in shared.status().rows if row[0] == "pre") == ("begun", "shared")


def test_seeds_are_run_on_several_machines(run: SetRun) -> None:
    settings = run.settings.model_copy(update={"shared": ("pre",), "once": ("ft_10",)})
    second = SetRun(settings, run.root, run.folder, only=(5,))
    second.run(1)
    own = [(5, "5", "6", "ft"), (5, "10", "10", "ft")]
    assert called(calls(run)[1:]) == [(3, "5", "5", "pre"), *own]
    rows = {row[0]: row[1:3] for row in second.status().rows}
    assert rows["pre"] == ("to come", "shared")
    assert rows["ft"] == ("elsewhere", "to come") and rows["ft_10"] == ("elsewhere", "-")
    with pytest.raises(ValueError, match="seeds: the set has no seed 4, but 3, 5"):
        SetRun(settings, run.root, run.folder, only=(4, 5)).run(1)


def test_lattices_of_a_shared_teacher_are_made_before_seeds_share_them(run: SetRun) -> None:
    rows = {**run.settings.experiments, "sn": {"base": "student.yaml"}}
    (run.recipe / "conf/student.yaml").write_text(
        "stage: 8\ninit: ft\nteacher: {experiment: ft}\noptim: {updates: 10}\ndata: {train: [unlabelled]}\n"
    )
    settings = run.settings.model_copy(update={"shared": ("pre", "ft"), "experiments": rows})
    SetRun(settings, run.root, run.folder).run(2)
    assert called(calls(run)[1:])[:3] == [(3, "5", "5", "pre"), (3, "5", "7", "ft"), (3, "10", "10", "ft")]


def units_of(run: SetRun) -> str:
    pre = run.experiments["pre"]
    return pre.units_folder


def test_what_is_shared_builds_on_nothing_of_a_seed(run: SetRun) -> None:
    shared = SetRun(run.settings.model_copy(update={"shared": ("ft",)}), run.root, run.folder)
    with pytest.raises(ValueError, match="shared: ft builds on pre, each seed's own; share that too"):
        shared.run(1)


def test_what_is_trained_once_is_of_the_first_seed_alone(run: SetRun) -> None:
    once = SetRun(run.settings.model_copy(update={"once": ("ft_10",)}), run.root, run.folder)
    once.run(1)
    assert [seed_and_names for seed_and_names in called(calls(run)[1:]) if seed_and_names[2] == "6"] == [
        (3, "5", "6", "ft,ft_10"), (5, "5", "6", "ft"),
    ]  # fmt: skip
    assert next(row[1:3] for row in once.status().rows if row[0] == "ft_10") == ("to come", "-")


def test_no_experiment_of_all_seeds_builds_on_one_of_the_first(run: SetRun) -> None:
    once = SetRun(run.settings.model_copy(update={"once": ("pre",)}), run.root, run.folder)
    with pytest.raises(ValueError, match="once: ft of all seeds builds on pre; name both here, or neither"):
        once.status()


def test_what_is_not_complete_is_not_linked(run: SetRun) -> None:
    shared = SetRun(run.settings.model_copy(update={"shared": ("pre",)}), run.root, run.folder)
    (shared.exp(3) / "pre").mkdir(parents=True)
    shared.run(1)
    assert not (shared.exp(5) / "pre").exists()


def test_settings_of_graphs_are_of_the_calls_alone(run: SetRun) -> None:
    changes = {"settings": ("graphs.unit_lm.order=2", "optim.lr=0.1")}
    other = SetRun(run.settings.model_copy(update=changes), run.root, run.folder)
    assert other.experiments["ft"].optim.lr == 0.1


def test_a_circle_is_found_before_anything_is_run(run: SetRun) -> None:
    rows = {"ft": {"init": "ft_10"}, "ft_10": {"base": "ft.yaml", "init": "ft"}}
    circle = SetRun(run.settings.model_copy(update={"experiments": rows}), run.root, run.folder)
    for call in (lambda: circle.run(1), circle.status):
        with pytest.raises(ValueError, match="circle: ft, ft_10"):
            call()
    assert not (run.root / "calls").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "experiments: there are none"),
        ({"ft": {"seed": 5}}, "ft: seed is given by the set; leave it out"),
        ({"a{x}": {"for": [1, 2]}}, r"a\{x\}: for: expected KEY: values"),
        ({"a{x}": {"for": {"x": 3}}}, "for: x: expected some values, as .a, b. .got 3"),
        ({"a{x}": {"for": {"x": []}}}, "for: x: expected some values"),
    ],
)
def test_sets_that_make_no_sense_are_refused(rows: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExperimentSet(name="s", title="T", corpus="some", experiments=rows)


def test_conditions_of_a_table_are_some_experiments(run: SetRun) -> None:
    table = ResultTable(title="t", rows={"": "ft"}, sets=("test-clean hall",))
    other = SetRun(run.settings.model_copy(update={"tables": (table,)}), run.root, run.folder)
    with pytest.raises(ValueError, match=r"tables: no experiment has decoding\.conditions\.hall; there are: none"):
        _ = other.experiments


def test_an_unknown_recipe_is_named(run: SetRun) -> None:
    other = SetRun(run.settings.model_copy(update={"corpus": "sone"}), run.root, run.folder)
    with pytest.raises(FileNotFoundError, match=r"corpus: no recipe .*sone; did you mean 'some'"):
        _ = other.experiments


def test_nothing_to_collect_is_an_error(run: SetRun) -> None:
    with pytest.raises(ValueError, match=r"no experiment of s is trained in .*work \(seeds 3, 5\); run the set first"):
        experiments.copy_results(run)


def test_a_call_that_fails_ends_the_run(run: SetRun) -> None:
    (run.root / "fails").touch()
    one = SetRun(run.settings.model_copy(update={"experiments": {"ft": {}}}), run.root, run.folder)
    with pytest.raises(RuntimeError, match=r"run\.sh .*--experiment ft .*: status 1; the same call"):
        one.run(2)


@pytest.mark.parametrize("jobs", [1, 2])
def test_after_a_failure_no_other_seed_goes_on(run: SetRun, jobs: int) -> None:
    (run.root / "fails").touch()
    rows = {"ft": {}, "ft_10": {"base": "ft.yaml", "init": "ft"}}
    settings = run.settings.model_copy(update={"experiments": rows, "seeds": tuple(range(6))})
    with pytest.raises(RuntimeError, match="status 1"):
        SetRun(settings, run.root, run.folder).run(jobs)
    made = called(calls(run)[1:])
    assert len({seed for seed, *_ in made}) <= jobs + 1 and not any(names == "ft_10" for *_, names in made)


def test_the_end_of_a_run_ends_its_calls() -> None:
    every = Calls()
    with ThreadPoolExecutor(1) as pool:
        sleeping = pool.submit(every.run, ["sleep", "60"])
        while not every._running:
            time.sleep(0.01)
        every.end()
        assert sleeping.result(timeout=10) == -signal.SIGTERM
    with pytest.raises(RuntimeError, match="ended"):
        every.run(["true"])


def test_the_status_has_states_and_cost(run: SetRun) -> None:
    rows = {row[0]: row[1:] for row in run.status().rows}
    assert rows["ft"] == ("to come", "to come", "0.0", "-") and rows["all"] == ("", "", "0.0", "0.0")
    folder = run.exp(3) / "ft"
    training(folder, 6, wall_s=120.0, audio_hours=0.1)
    (run.exp(5) / "pre").mkdir(parents=True)
    rows = {row[0]: row[1:] for row in run.status().rows}
    assert rows["ft"] == ("trained", "to come", "2.0", "2.0")  # as long as the other seed
    assert rows["ft_10"] == ("to come", "to come", "0.0", "4.0")  # 10 updates of 36 s: 0.1 h, at the same pace
    assert rows["pre"][1] == "begun"
    decoding(folder, "test-clean", "offline", "1best", 1.0)
    assert next(row[1] for row in run.status().rows if row[0] == "ft") == "done"
