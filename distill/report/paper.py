"""The tables of DistillW2V2 (papers/001) with its figures, and the same rows from our experiments."""

from __future__ import annotations

from collections.abc import Sequence

from distill.report.runs import GRAPH, Run, test_sets
from distill.report.table import Section, Table

PAPER = "Fu et al., DistillW2V2 (2023)"
LIBRISPEECH = ("test-clean", "test-other")
PAPER_OBJECTIVES = {  # table 3: objective -> (hidden, prediction, Gigaspeech, in-house)
    "T": ("-", "-", 11.84, 17.56),
    "M1": ("-", "MSE", 14.29, 20.83),
    "M2": ("-", "LF-MMI", 13.54, 20.22),
    "M3": ("MSE", "LF-MMI", 12.35, 18.60),
    "M4": ("MSE", "MSE and LF-MMI", 12.37, 18.41),
}
PAPER_STEPS = {  # table 2: step -> (Gigaspeech, in-house)
    "teacher": (11.84, 17.56),
    "single step": (15.58, 22.36),
    "first step": (12.37, 18.41),
    "second step": (12.90, 19.25),
}
PAPER_LIBRISPEECH = {  # table 5, 4-gram: step -> (test-clean, test-other)
    "teacher": (2.91, 5.43),
    "first step": (3.29, 6.63),
    "second step": (3.54, 7.57),
}
PAPER_LIBRISPEECH_TRANSFORMER = {  # table 5, Transformer language model
    "teacher": (2.2, 4.26),
    "first step": (2.42, 4.83),
    "second step": (2.50, 5.27),
}
NOTE = "our columns: n-gram graph, SS by `Recogniser.step`; other corpora and sizes than the paper's"


def steps(runs: Sequence[Run]) -> dict[str, Run]:
    """Teacher, single step, first step and second step of the paper, those that were run.

    The teacher is that of a student, else the first one there is. Pre-training, which is not decoded, is no teacher of
    the paper where others are, and distillation without outputs no first step.
    """
    roles: dict[str, Run] = {}
    by_name = {run.name: run for run in runs}
    for run in runs:
        if run.stage == 8 and run.streams:
            roles.setdefault("single step", run)
        elif run.stage == 9 and run.streams and _teacher(run) and run.training.config["init"] in by_name:
            roles.setdefault("second step", run)
            roles.setdefault("first step", by_name[run.training.config["init"]])
    decoded = [run for run in runs if run.decodings] or runs
    if "first step" not in roles:
        plain = [run for run in decoded if run.stage == 8 and not run.streams and run.name not in ("m1", "m2", "m3")]
        roles.update({"first step": plain[0]} if plain else {})
    taught = [by_name[name] for student in roles.values() if (name := _teacher(student)) in by_name]
    if teachers := [*taught, *(run for run in decoded if run.stage in (5, 6))]:
        roles["teacher"] = teachers[0]
    return roles


def _teacher(run: Run) -> str:
    """Name of the experiment that a run's model learnt from; empty without one."""
    return (run.training.config.get("teacher") or {}).get("experiment", "")


def objective_table(runs: Sequence[Run]) -> Table | None:
    """Table 3 of the paper with our figures, None unless m1, m2 or m3 was run."""
    roles = steps(runs)
    ours = {run.name.upper(): run for run in runs if run.name in ("m1", "m2", "m3")}
    if not ours:
        return None
    ours |= {new: roles[old] for new, old in (("T", "teacher"), ("M4", "first step")) if old in roles}
    sets = test_sets(ours.values())
    rows = tuple(
        (name, hidden, output, *_main_rates(ours.get(name), sets), *(f"{x:.2f}" for x in paper))
        for name, (hidden, output, *paper) in PAPER_OBJECTIVES.items()
    )
    return Table(("objective", "hidden", "prediction", *sets, "paper: Gigaspeech", "paper: in-house"), rows, 3)


def step_table(runs: Sequence[Run]) -> Table:
    """Table 2 of the paper (and its table 5 on LibriSpeech's test sets) with our figures."""
    roles, sets = steps(runs), test_sets(runs)
    libri = set(LIBRISPEECH) <= set(sets)
    rows = []
    for step, paper in PAPER_STEPS.items():
        run = roles.get(step)
        row = [step, run.name if run else "-", *_main_rates(run, sets), *(f"{x:.2f}" for x in paper)]
        if libri:
            row += [f"{x:.2f}" for x in PAPER_LIBRISPEECH[step]] if step in PAPER_LIBRISPEECH else ["-", "-"]
        rows.append(tuple(row))
    head = ("step", "model", *sets, "paper: Gigaspeech", "paper: in-house")
    return Table((*head, *(f"paper: LibriSpeech {name}" for name in LIBRISPEECH if libri)), tuple(rows), 2)


def _main_rates(run: Run | None, sets: Sequence[str]) -> list[str]:
    return run.rates(sets, run.main_mode, GRAPH) if run else ["-"] * len(sets)


def sections(runs: Sequence[Run]) -> list[Section]:
    """Our figures beside the paper's."""
    parts: list[Section] = [
        (f"Two steps, as tables 2 and 5 of {PAPER}", [*step_table(runs).markdown(), "", NOTE]),
    ]
    objectives = objective_table(runs)
    if objectives is not None:
        title = f"Objectives of the first step, as table 3 of {PAPER}"
        parts.append((title, [*objectives.markdown(), "", NOTE]))
    return parts
