"""Results of a set of experiments with several seeds: means over seeds with their intervals, and differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import t as student_t

from distill.config.decoding import OF_UNITS
from distill.config.experiment_set import ExperimentSet, ResultTable
from distill.report import distorted_states, plots, similarity, superb
from distill.report.runs import BEAM, Run, millions, read_runs, test_sets
from distill.report.table import Section, Table, markdown, number

NOTE = (
    "Cells: mean over seeds ± half of its 95 % interval (Student's t over seeds); of one seed its value alone. A"
    " difference is of the same seed's two models, its interval over seeds: an order is claimed only where it excludes"
    " 0. A model that all seeds share was trained once. Error rates (%) over the n-gram graph; streaming models by"
    " `Recogniser.step`."
)
OF_BEAM = " A transducer alone has no such graph: its words are searched by its beam, with the n-gram."
Seeds = dict[int, dict[str, Run]]  # seed -> experiment -> run


def read_seeds(folder: Path) -> Seeds:
    """The runs of each seed below a folder of results, seed-<N>. Raises what `read_runs` raises."""
    numbers = sorted(int(path.name.removeprefix("seed-")) for path in folder.glob("seed-*"))
    return {seed: {run.name: run for run in read_runs(folder / f"seed-{seed}")} for seed in numbers}


def mean_and_half(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half of its 95 % interval by Student's t; None for the interval of a single value."""
    if len(values) < 2:
        return fmean(values), None
    return fmean(values), float(student_t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def cell(values: Sequence[float], digits: int = 2, sign: str = "") -> str:
    """'12.34 ± 0.56', '-' without values."""
    if not values:
        return "-"
    mean, half = mean_and_half(values)
    return f"{mean:{sign}.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def _values(seeds: Seeds, name: str, value: Callable[[Run], float | None]) -> list[float]:
    found = (value(runs[name]) for runs in seeds.values() if name in runs)
    return [each for each in found if each is not None]


def result_table(table: ResultTable, seeds: Seeds) -> Table:
    """One row per label: size, cost and speed where it was exported, and its results; error rates of units say so."""
    runs, rows = _every(seeds), []
    shown, sized = _shown(table, runs), any(run.timing for run in runs)
    for row in table.rows:
        own = [run for run in runs if run.name == table.experiment(row, next(iter(table.columns)))]
        cells = [row, millions(own)]
        if sized:
            timed = next((run for run in own if run.timing), None)
            timing, fastest = (timed.timing, timed.fastest) if timed else (None, None)
            cells.append(number(timing.macs_per_second / 1e9 if timing else None, 2))
            cells.append(f"{fastest.rtf:.4f} ({fastest.runtime})" if fastest else "-")
        for label, key in shown:
            values = _values(seeds, table.experiment(row, label), _reader(table, label, key))
            cells.append(cell(values, 3 if table.figures else 2))
        rows.append((*cells, *([table.paper.get(row, "-")] if table.paper else [])))
    heads = (_heading(table, label, key) for label, key in shown)
    head = ("model", "params/M", *(["G MAC/s", "RTF"] if sized else []), *heads)
    return Table((*head, *(["paper"] if table.paper else [])), tuple(rows))


def plot(table: ResultTable, seeds: Seeds, path: Path) -> list[str]:
    """Draw the table's error rates against parameters, as far as there are any; the lines that show it on the page."""
    runs, lines = _every(seeds), dict[str, list[tuple[float, float, float | None]]]()
    for label, key in _shown(table, runs):
        for name in (table.experiment(row, label) for row in table.rows):
            if values := _values(seeds, name, _reader(table, label, key)):
                size = next(run.size for run in runs if run.name == name) / 1e6
                lines.setdefault(_heading(table, label, key), []).append((size, *mean_and_half(values)))
    if not lines:
        return []
    plots.by_size(lines, "word error rate (%)", path)
    return ["", f"![{table.title}, by parameters]({path.name}.svg)"]


def _every(seeds: Seeds) -> list[Run]:
    return [run for each in seeds.values() for run in each.values()]


def _shown(table: ResultTable, runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The columns: label and figure, task or test set."""
    keys = table.figures or table.tasks or table.sets or test_sets(runs)
    return [(label, key) for label in table.columns for key in keys]


def _heading(table: ResultTable, label: str, key: str) -> str:
    return f"{label} {_title(table, label, key)}".strip()


def _title(table: ResultTable, label: str, key: str) -> str:
    """A column's heading after its label: error rates of units and figures of tasks name what they are."""
    if table.tasks:
        return f"{key} {superb.first_metric(key).title}"
    return f"{key} (units)" if table.methods.get(label) in OF_UNITS else key


def _reader(table: ResultTable, label: str, key: str) -> Callable[[Run], float | None]:
    if table.figures:
        return lambda run: (run.training.figures or {}).get(key)
    if table.tasks:
        return partial(_of_task, task=key)
    return lambda run: run.error_rate(key, table.methods.get(label))


def difference_table(settings: ExperimentSet, seeds: Seeds) -> Table:
    """One row per pair and test set or task that both have, first - second, by its method or each one's main one."""
    rows, of_first = [], seeds.get(settings.seeds[0], {})
    shared = {name: of_first[name] for name in settings.shared if name in of_first}
    tasks = dict.fromkeys(task for table in settings.tables for task in table.tasks)
    for first, second, *method in settings.compared:
        both = [own for runs in seeds.values() if {first, second} <= (own := shared | runs).keys()]
        sets = test_sets((run for runs in both for run in (runs[first], runs[second])), conditions=True)
        values: dict[str, Callable[[Run], float | None]] = {
            name: partial(Run.error_rate, test_set=name, method=next(iter(method), None)) for name in sets
        }
        values |= {} if method else {task: partial(_of_task, task=task) for task in tasks}
        for name, value in values.items():
            pairs = [(value(runs[first]), value(runs[second])) for runs in both]
            known = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
            if not known:
                continue
            differences = [ours - theirs for ours, theirs in known]
            relative = 100 * sum(differences) / (sum(theirs for _, theirs in known) or 1.0)
            mean, half = mean_and_half(differences)
            order = "-" if half is None or abs(mean) <= half else "lower" if mean < 0 else "higher"
            pair = " ".join([f"{first} - {second}", *method])
            rows.append((pair, name, cell(differences, sign="+"), f"{relative:+.1f} %", order))
    return Table(("compared", "set", "difference", "relative", "first is"), tuple(rows), fixed=2)


def _of_task(run: Run, task: str) -> float | None:
    return superb.main_figure(run.superb, task)


def sections(settings: ExperimentSet, seeds: Seeds, folder: Path) -> Iterator[Section]:
    """The tables of the set, differences, what is missing, trainings and provenance; writes plots into the folder."""
    for place, table in enumerate(settings.tables, 1):
        drawn = plot(table, seeds, folder / f"sizes-{place}") if table.plot else []
        yield table.title, [*result_table(table, seeds).markdown(), *(["", table.note] if table.note else []), *drawn]
    differences = difference_table(settings, seeds)
    if differences.rows:
        beam = any(run.main_method == BEAM for runs in seeds.values() for run in runs.values())
        yield "Differences", [*differences.markdown(), "", NOTE + (OF_BEAM if beam else "")]
    names = [name for name, _ in settings.each()]
    expected = {seed: [name for name in names if seed in settings.seeds_of(name)] for seed in settings.seeds}
    missing = {seed: [name for name in own if name not in seeds.get(seed, {})] for seed, own in expected.items()}
    if any(missing.values()):
        lines = [
            f"- seed {seed}: {'all' if own == expected[seed] else ', '.join(own)}"
            for seed, own in missing.items() if own
        ]  # fmt: skip
        yield "Not yet run", lines
    yield "Trainings, means over seeds", training_table(names, seeds).markdown()
    results = [run.training for runs in seeds.values() for run in runs.values()]
    command = f".venv/bin/python tools/experiments.py egs/{settings.corpus}/conf/sets/{settings.name}.yaml --dir DIR"
    facts = {
        "hardware": ", ".join(dict.fromkeys(result.hardware for result in results)),
        "commit": ", ".join(dict.fromkeys(result.commit for result in results)),
        "training time, all together": f"{sum(result.wall_s for result in results) / 3600:.2f} h",
        "command": f"`{command}`, then `--collect` and `tools/report.py`",
    }
    yield "Provenance", [f"- {name}: {value}" for name, value in facts.items()]


def training_table(names: Sequence[str], seeds: Seeds) -> Table:
    """Work done and losses of every experiment."""
    rows = []
    for name in names:
        if own := [runs[name].training for runs in seeds.values() if name in runs]:
            work = (fmean(each.audio_hours for each in own), fmean(each.wall_s for each in own) / 60)
            losses = [
                [x for x in values if x is not None] for values in zip(*((e.train_loss, e.valid_loss) for e in own))
            ]
            cells = (f"{work[0]:.2f}", f"{work[1]:.1f}", *(cell(values, 3) for values in losses))
            rows.append((name, str(len(own)), str(own[0].updates), *cells))
    return Table(("experiment", "seeds", "updates", "audio/h", "time/min", "train loss", "valid loss"), tuple(rows))


def page(settings: ExperimentSet, folder: Path) -> str:
    """The page of a folder of results with several seeds."""
    of_states = [*similarity.sections(folder), *distorted_states.sections(folder)]
    every = [*sections(settings, read_seeds(folder), folder), *of_states]
    return f"# {settings.title}\n\n{markdown(every)}"
