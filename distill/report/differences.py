"""Differences of error rates between the decodings people compare: which these are, and their table.

As in report.py every figure comes from a file: DIFFERENCES, which stage 13 writes from the decode folders
and which is committed with the results. Only the standard library is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.report.recognition import GRAPH, RESCORED, Run, Table, steps, test_sets, write_text

DIFFERENCES = "differences.json"
TITLE = "Differences of word error rates"
NOTES = (
    "Diff.: first - second in percent absolute; below 0 the first is better. Intervals of 95 % by paired bootstrap"
    " (Bisani and Ney 2004), once drawing utterances and once speakers. Better: share of the draws in which the first"
    " makes fewer errors; speakers are drawn where there are ten or more. p: matched pairs of segments (MAPSSWE,"
    " Gillick and Cox 1989), none where all segments differ by the same number of errors."
    " Decoded by the n-gram graph; what other language models change stands with them."
)
STEPS = (("first step", "teacher"), ("second step", "first step"), ("single step", "second step"))
OBJECTIVES = ("m1", "m2", "m3")  # against the first step, which is m4


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
    """What people compare: each step with the one before it, objectives with all, streaming with offline, methods."""
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
    return None if decoding is None else float(decoding["wer"])


# The file


def row(pair: Pair, figures: Mapping[str, Any]) -> dict[str, Any]:
    """What the file holds of a pair: which it is, and what `decode.compare.compare_folders` found."""
    sides = {"ours": vars(pair.ours), "theirs": vars(pair.theirs)}
    return {**sides, "set": pair.test_set, "method": pair.ours.method, **figures}


def write(exp_dir: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the file of an exp-dir."""
    write_text(exp_dir / DIFFERENCES, json.dumps(rows, indent=1, sort_keys=True) + "\n")


def read(folder: Path, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The rows of a folder's file, none where there is no file.

    Raises ValueError for a file that is not JSON, or is not of the same decodings as the runs' wer.json.
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
            known, found = _rate(runs, Side(**each[side]), each["set"]), each["utterance"][side]
            if known != found:
                which = f"{each[side]['experiment']}, {each['set']}, {each[side]['mode']}"
                raise ValueError(f"{path} has {found} % for {which}, wer.json has {known}; run stage 13 again")
    return rows


# The table


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each pair and set; pairs of methods are `language_models`' matter."""
    head = ("compared", "set", "diff.", "by utterance", "by speaker", "better", "p")
    return Table(head, tuple(_cells(each) for each in rows if not of_methods(each)), fixed=2)


def of_methods(each: Mapping[str, Any]) -> bool:
    """Whether a row compares two methods of one experiment."""
    return bool(each["ours"].get("method", GRAPH) != each["theirs"].get("method", GRAPH))


def _cells(each: Mapping[str, Any]) -> tuple[str, ...]:
    by_utterance, by_speaker = each["utterance"], each["speaker"]
    return (
        label(each["ours"], each["theirs"]),
        each["set"],
        f"{by_utterance['difference']:+.2f}",
        interval(by_utterance),
        interval(by_speaker) if by_speaker else "-",
        _better(by_speaker or by_utterance),
        p_value(each),
    )


def _better(found: Mapping[str, Any]) -> str:
    return f"{100 * found['better']:.0f} %" if found["better"] or found["worse"] else "equal"


def p_value(each: Mapping[str, Any]) -> str:
    """Of the matched pairs test; "-" where it was not to be had."""
    p = (each["matched_pairs"] or {}).get("p")
    return "-" if p is None else f"{p:.2g}"


def interval(found: Mapping[str, Any]) -> str:
    """'[-0.57, +0.06]'."""
    return f"[{found['low']:+.2f}, {found['high']:+.2f}]"


def label(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """'sn - teacher', or 'ss: streaming - offline' for two modes or methods of one experiment."""
    if of_methods({"ours": ours, "theirs": theirs}):
        return f"{ours['experiment']}: {ours['method']} - {theirs['method']}"
    if ours["experiment"] == theirs["experiment"]:
        return f"{ours['experiment']}: {ours['mode']} - {theirs['mode']}"
    return f"{ours['experiment']} - {theirs['experiment']}"


def sections(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Title and markdown lines for `report.markdown_report`; none without rows."""
    return [(TITLE, [*table(rows).markdown(), "", NOTES])] if rows else []


def terminal(rows: Sequence[Mapping[str, Any]], width: int = 100) -> str:
    """What a recipe prints of them; empty without rows."""
    return "\n".join([f"{TITLE} (first - second, 95 % intervals)", *table(rows).terminal(width), ""]) if rows else ""
