"""Differences between decodings: the pairs that are compared, their file (which stage 13 writes), and its table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.files import write_json
from distill.report.paper import steps
from distill.report.runs import GRAPH, RESCORED, Run, test_sets
from distill.report.table import Section, Table

DIFFERENCES = "differences.json"
TITLE = "Differences of word error rates"
NOTES = (
    "Diff.: first - second in percent absolute; below 0 the first is better. Intervals of 95 % by paired bootstrap"
    " (Bisani and Ney 2004), over utterances and over speakers. Better: share of the draws in which the first has fewer"
    " errors, over speakers where there are ten or more. p: matched pairs of segments (MAPSSWE, Gillick and Cox 1989),"
    " none where all segments differ by the same number of errors. Decoded over the n-gram graph; rescoring with other"
    " language models has a table of its own."
)
STEPS = (("first step", "teacher"), ("second step", "first step"), ("single step", "second step"))
OBJECTIVES = ("m1", "m2", "m3")  # against the first step, which is m4
Row = Mapping[str, Any]  # of the file


@dataclass(frozen=True)
class Side:
    """One of two decodings: experiment, mode and method."""

    experiment: str
    mode: str
    method: str = GRAPH


@dataclass(frozen=True)
class Pair:
    """Two decodings of one set."""

    ours: Side
    theirs: Side
    test_set: str

    def folders(self, exp_dir: Path) -> tuple[Path, Path]:
        """The decode folders of both."""
        first, second = (
            exp_dir / side.experiment / f"decode_{self.test_set}_{side.mode}_{side.method}"
            for side in (self.ours, self.theirs)
        )
        return first, second


def pairs(runs: Sequence[Run]) -> list[Pair]:
    """Each step with the one before it, objectives with the full one, streaming with offline, rescoring with 1best."""
    return [
        Pair(ours, theirs, test_set)
        for ours, theirs in _sides(runs)
        for test_set in test_sets(runs)
        if _rate(runs, ours, test_set) is not None and _rate(runs, theirs, test_set) is not None
    ]


def _sides(runs: Sequence[Run]) -> Iterator[tuple[Side, Side]]:
    roles, by_name = steps(runs), {run.name: run for run in runs}
    compared = [(roles[ours], roles[theirs]) for ours, theirs in STEPS if {ours, theirs} <= set(roles)]
    if "first step" in roles:
        compared += [(by_name[name], roles["first step"]) for name in OBJECTIVES if name in by_name]
    for ours, theirs in compared:
        if ours.name != theirs.name:
            yield Side(ours.name, ours.main_mode), Side(theirs.name, theirs.main_mode)
    for run in runs:
        if {"streaming", "offline"} <= set(run.modes):
            yield Side(run.name, "streaming"), Side(run.name, "offline")
    for run in runs:
        for method in RESCORED:
            yield Side(run.name, run.main_mode, method), Side(run.name, run.main_mode)


def _rate(runs: Sequence[Run], side: Side, test_set: str) -> float | None:
    run = next((run for run in runs if run.name == side.experiment), None)
    decoding = run.decoding(test_set, side.mode, side.method) if run else None
    return None if decoding is None else decoding.wer


def row(pair: Pair, figures: Row) -> dict[str, Any]:
    """A row of the file: the pair, and the figures of `scoring.compare.compare_folders`."""
    sides = {"ours": vars(pair.ours), "theirs": vars(pair.theirs)}
    return {**sides, "set": pair.test_set, "method": pair.ours.method, **figures}


def write(exp_dir: Path, rows: Sequence[Row]) -> None:
    """Write the file of an exp-dir."""
    write_json(exp_dir / DIFFERENCES, rows)


def read(folder: Path, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The rows of a folder's file, none where there is no file.

    Raises ValueError for a file that is not JSON, or whose error rates are not those of the runs' wer.json.
    """
    path = folder / DIFFERENCES
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); run stage 13 again") from None
    for each in rows:
        for side in ("ours", "theirs"):
            expected, got = _rate(runs, Side(**each[side]), each["set"]), each["utterance"][side]
            if expected != got:
                which = f"{each[side]['experiment']}, {each['set']}, {each[side]['mode']}"
                raise ValueError(f"{path} has {got} % for {which}, wer.json has {expected}; run stage 13 again")
    return rows


def table(rows: Sequence[Row]) -> Table:
    """One row per pair and set, without pairs of methods, which are in `language_models`."""
    head = ("compared", "set", "diff.", "by utterance", "by speaker", "better", "p")
    cells = []
    for each in rows:
        if not of_methods(each):
            utterance, speaker = each["utterance"], each["speaker"]
            draws = speaker or utterance
            better = f"{100 * draws['better']:.0f} %" if draws["better"] or draws["worse"] else "equal"
            intervals = (interval(utterance), interval(speaker) if speaker else "-")
            label = label_of(each["ours"], each["theirs"])
            cells.append((label, each["set"], f"{utterance['difference']:+.2f}", *intervals, better, p_value(each)))
    return Table(head, tuple(cells), fixed=2)


def of_methods(each: Row) -> bool:
    """Whether a row compares two methods of one experiment."""
    return bool(each["ours"].get("method", GRAPH) != each["theirs"].get("method", GRAPH))


def p_value(each: Row) -> str:
    """p of the matched pairs test; "-" where there is none."""
    p = (each["matched_pairs"] or {}).get("p")
    return "-" if p is None else f"{p:.2g}"


def interval(bounds: Row) -> str:
    """'[-0.57, +0.06]'."""
    return f"[{bounds['low']:+.2f}, {bounds['high']:+.2f}]"


def label_of(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """'sn - teacher', or 'ss: streaming - offline' for two modes or methods of one experiment."""
    if ours["experiment"] != theirs["experiment"]:
        return f"{ours['experiment']} - {theirs['experiment']}"
    key = "method" if of_methods({"ours": ours, "theirs": theirs}) else "mode"
    return f"{ours['experiment']}: {ours[key]} - {theirs[key]}"


def sections(rows: Sequence[Row]) -> list[Section]:
    """Title and markdown lines; none without rows."""
    return [(TITLE, [*table(rows).markdown(), "", NOTES])] if rows else []
