"""Tables over seeds, from fabricated result files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill.config.experiment_set import ExperimentSet
from distill.report import seeds
from distill.report.runs import read_runs
from tests.support.results import decoding, superb_task, timing, timing_row, training, wer, write

RATES = {"a": (10.0, 11.0, 12.0), "b": (12.0, 13.1, 13.9), "c": (10.0, 14.0, 9.0)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rates in RATES.items():
        for seed, rate in enumerate(rates):
            experiment = tmp_path / f"seed-{seed}" / name
            training(experiment, 6, figures={"accuracy": rate / 100})
            decoding(experiment, "test-clean", "offline", "1best", rate)
    rows = [timing_row("onnx", 0.005, "offline"), timing_row("int8", 0.004, "offline")]
    write(tmp_path / "seed-0/a/export/timing.json", timing(macs_per_second=2.5e9, rows=rows))
    return tmp_path


def settings(**changes: Any) -> ExperimentSet:
    table = {"title": "Rates", "rows": {"A": "a", "B": "b"}, "paper": {"A": "7.5"}}
    experiments: dict[str, dict[str, Any]] = {name: {} for name in "abcd"}
    values = {"title": "T", "corpus": "some", "experiments": experiments, "tables": [table]}
    return ExperimentSet.model_validate(values | changes)


def test_means_have_intervals_over_seeds(folder: Path) -> None:
    table = seeds.result_table(settings().tables[0], seeds.read_seeds(folder))
    assert table.head == ("model", "params/M", "G MAC/s", "RTF", "test-clean", "paper")
    assert table.rows == (
        ("A", "1.01", "2.50", "0.0040 (int8)", "11.00 ± 2.48", "7.5"), ("B", "1.01", "-", "-", "13.00 ± 2.37", "-"),
    )  # fmt: skip


def test_an_interval_is_that_of_scipy() -> None:
    from scipy import stats

    values = [3.0, 4.5, 3.7, 4.1]
    mean, half = seeds.mean_and_half(values)
    low, high = stats.t.interval(0.95, 3, loc=mean, scale=stats.sem(values))
    assert half is not None and (mean - half, mean + half) == pytest.approx((low, high))
    assert seeds.mean_and_half([2.0]) == (2.0, None)


def test_an_order_needs_an_interval_without_0(folder: Path) -> None:
    pairs = settings(compared=[["a", "b"], ["c", "b"], ["b", "a"], ["a", "d"]])
    rows = seeds.difference_table(pairs, seeds.read_seeds(folder)).rows
    assert [(row[0], row[-1]) for row in rows] == [("a - b", "lower"), ("c - b", "-"), ("b - a", "higher")]
    assert rows[0][2:4] == ("-2.00 ± 0.25", "-15.4 %")


def test_rates_are_drawn_against_parameters(folder: Path, tmp_path: Path) -> None:
    table = {"title": "Rates", "rows": {"A": "a", "B": "b", "D": "d"}, "plot": True}
    text = seeds.page(settings(tables=[table]), folder)
    assert "![Rates, by parameters](sizes-1.svg)" in text and (folder / "sizes-1.svg").is_file()
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.report.plots.by_size", lambda lines, *_: drawn.append(lines))
        seeds.plot(settings(tables=[table]).tables[0], seeds.read_seeds(folder), tmp_path / "again")
    first, second = drawn[0]["test-clean"]
    assert first == (1.01, 11.0, pytest.approx(2.484, abs=1e-3)) and second[:2] == (1.01, 13.0)
    with pytest.raises(ValueError, match="plot: error rates are drawn"):
        settings(tables=[table | {"figures": ["accuracy"]}])


def test_a_transformer_lm_is_a_method(folder: Path) -> None:
    for seed in range(3):
        decoding(folder / f"seed-{seed}/a", "test-clean", "offline", "transformer-lm", 5.0 + seed)
    columns = {"graph:": "{row}", "LM:": "{row}"}
    table = {"title": "LMs", "rows": {"A": "a"}, "columns": columns, "methods": {"LM:": "transformer-lm"}}
    found = seeds.result_table(settings(tables=[table]).tables[0], seeds.read_seeds(folder))
    assert found.rows[0][-2:] == ("11.00 ± 2.48", "6.00 ± 2.48")


def test_models_are_compared_by_a_method_that_is_given(folder: Path) -> None:
    for name, rate in (("a", 30.0), ("b", 40.0)):
        for seed in range(3):
            decoding(folder / f"seed-{seed}" / name, "test-clean", "offline", "transducer_beam", rate + seed)
    pairs = settings(compared=[["a", "b"], ["a", "b", "transducer_beam"]])
    rows = seeds.difference_table(pairs, seeds.read_seeds(folder)).rows
    assert [row[:3] for row in rows] == [
        ("a - b", "test-clean", "-2.00 ± 0.25"),
        ("a - b transducer_beam", "test-clean", "-10.00 ± 0.00"),
    ]


def test_rates_under_conditions_are_named_with_their_set(folder: Path) -> None:
    for seed in range(3):
        path = folder / f"seed-{seed}/a/decode_test-clean_two_offline_1best/wer.json"
        write(path, wer("test-clean", "offline", "1best", 20.0 + seed, experiment="a", condition="two"))
    table = {"title": "Robust", "rows": {"A": "a", "B": "b"}, "sets": ["test-clean", "test-clean two"]}
    found = seeds.result_table(settings(tables=[table]).tables[0], seeds.read_seeds(folder))
    assert found.head[-2:] == ("test-clean", "test-clean two")
    assert [row[-2:] for row in found.rows] == [("11.00 ± 2.48", "21.00 ± 2.48"), ("13.00 ± 2.37", "-")]


def test_tasks_of_superb_stand_in_place_of_rates_and_are_compared(folder: Path) -> None:
    for name, accuracy in (("a", 90.0), ("b", 80.0)):
        for seed in range(3):
            conditions = {"two": {"accuracy": accuracy - 20 + seed % 2}} if name == "a" or seed else {}
            superb_task(folder / f"seed-{seed}" / name, "KS", conditions, own=True, accuracy=accuracy + seed)
    table = {"title": "Tasks", "rows": {"A": "a", "C": "c"}, "tasks": ["KS", "KS two"]}
    pairs = settings(tables=[table], compared=[["a", "b"]])
    found = seeds.result_table(pairs.tables[0], seeds.read_seeds(folder))
    assert found.head[-2:] == ("KS Acc", "KS two Acc")
    assert [row[-2:] for row in found.rows] == [("91.00 ± 2.48", "70.33 ± 1.43"), ("-", "-")]
    rows = seeds.difference_table(pairs, seeds.read_seeds(folder)).rows
    assert [row[1:] for row in rows[1:]] == [
        ("KS", "+10.00 ± 0.00", "+12.3 %", "higher"),
        ("KS two", "+10.00 ± 0.00", "+16.5 %", "higher"),
    ]


def test_a_table_is_of_one_kind() -> None:
    table = {"title": "T", "rows": {"A": "a"}, "tasks": ["KS"], "figures": ["accuracy"]}
    with pytest.raises(ValueError, match=r"give one of them \(got figures, tasks\)"):
        settings(tables=[table])


def test_differences_are_of_conditions_too(folder: Path) -> None:
    for name, first in (("a", 20.0), ("b", 25.0)):
        for seed in range(3):
            path = folder / f"seed-{seed}/{name}/decode_test-clean_two_offline_1best/wer.json"
            write(path, wer("test-clean", "offline", "1best", first + seed, experiment=name, condition="two"))
    rows = seeds.difference_table(settings(compared=[["a", "b"]]), seeds.read_seeds(folder)).rows
    assert [row[1] for row in rows] == ["test-clean", "test-clean two"]
    assert rows[1][2:] == ("-5.00 ± 0.00", "-19.2 %", "lower")


def test_figures_of_the_last_validation_stand_in_place_of_rates(folder: Path) -> None:
    table = {"title": "Accuracy", "rows": {"A": "a", "D": "d"}, "figures": ["accuracy", "other"]}
    rows = seeds.result_table(settings(tables=[table]).tables[0], seeds.read_seeds(folder)).rows
    assert rows == (
        ("A", "1.01", "2.50", "0.0040 (int8)", "0.110 ± 0.025", "-"), ("D", "-", "-", "-", "-", "-"),
    )  # fmt: skip


@pytest.fixture
def transducers(folder: Path) -> Path:
    """a and b with LF-MMI alone, c with both, d with RNN-T alone."""
    config = {"stage": 8, "init": None, "model": {"streaming": {"chunk_frames": 0}}}
    for seed in range(3):
        for name, others in (("c", ["1best"]), ("d", [])):
            methods = [*others, "transducer_greedy", "transducer_beam"]
            training(folder / f"seed-{seed}" / name, 8, config={**config, "decoding": {"methods": methods}})
            for method, rate in zip(methods[::-1], (20.0, 40.0)):
                decoding(folder / f"seed-{seed}" / name, "test-clean", "offline", method, rate + seed)
    return folder


def test_a_column_may_have_a_method_of_its_own(transducers: Path) -> None:
    table = {
        "title": "Both",
        "rows": {"LF-MMI": "a", "both": "c", "RNN-T": "d"},
        "columns": {"main:": "{row}", "graph:": "{row}", "beam:": "{row}", "greedy:": "{row}"},
        "methods": {"graph:": "1best", "beam:": "transducer_beam", "greedy:": "transducer_greedy"},
    }
    found = seeds.result_table(settings(tables=[table]).tables[0], seeds.read_seeds(transducers))
    assert found.head[4:] == ("main: test-clean", "graph: test-clean", "beam: test-clean", "greedy: test-clean (units)")
    beam, greedy = "21.00 ± 2.48", "41.00 ± 2.48"
    assert [row[4:] for row in found.rows] == [
        ("11.00 ± 2.48", "11.00 ± 2.48", "-", "-"),
        ("11.00 ± 6.57", "11.00 ± 6.57", beam, greedy),
        (beam, "-", beam, greedy),
    ]


def test_a_transducer_alone_is_compared_by_its_beam(transducers: Path) -> None:
    pairs = settings(compared=[["d", "a"], ["c", "a"]])
    rows = seeds.difference_table(pairs, seeds.read_seeds(transducers)).rows
    assert [(row[0], row[2]) for row in rows] == [("d - a", "+10.00 ± 0.00"), ("c - a", "+0.00 ± 7.45")]
    assert seeds.OF_BEAM in seeds.page(pairs, transducers)


def test_without_a_transducer_alone_the_notes_have_none(folder: Path) -> None:
    assert seeds.OF_BEAM not in seeds.page(settings(compared=[["a", "b"]]), folder)


def test_a_size_has_what_gates_leave(folder: Path) -> None:
    for seed, sparsity in enumerate((0.4, 0.5, 0.6)):
        training(folder / f"seed-{seed}" / "d", 8, figures={"sparsity": sparsity - 0.02})
    table = {"title": "Gates", "rows": {"A": "a", "D": "d"}, "figures": ["sparsity"]}
    rows = seeds.result_table(settings(tables=[table]).tables[0], seeds.read_seeds(folder)).rows
    assert [row[1] for row in rows] == ["1.01", "1.01 (0.53 open)"]
    (run,) = (run for run in read_runs(folder / "seed-0") if run.name == "d")
    assert run.open_size == pytest.approx(1_000_000 * (1 - 0.38) + 10_000)
    config = {**run.training.config, "model": {"pruning": {"of": "macs"}}}
    training(folder / "seed-0/d", 8, figures={"sparsity": 0.38}, config=config)
    (run,) = (run for run in read_runs(folder / "seed-0") if run.name == "d")
    assert run.open_size is None, "the share is one of multiply-adds"


def test_the_page_lists_what_is_missing(folder: Path) -> None:
    text = seeds.page(settings(compared=[["a", "b"]]), folder)
    assert "## Not yet run\n\n- seed 0: d\n- seed 1: d\n- seed 2: d\n" in text
    assert text.index("## Rates") < text.index("## Differences") < text.index("## Trainings")
    assert "| a | 3 | 7 | 1.25 | 1.5 | 0.500 ± 0.000 | - |" in text
    assert "- seed 7: all\n" in seeds.page(settings(seeds=[0, 7]), folder)
