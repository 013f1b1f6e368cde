"""The report of an exp-dir or of committed results: one markdown page with its plots, and tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.files import write_text
from distill.report import calibration, differences, language_models, paper, recognition, robustness, speed, superb
from distill.report.runs import Run, read_runs
from distill.report.table import markdown, terminal


def page(folder: Path, title: str) -> str:
    """The text of the page; writes its plots into the folder. Raises what the result files' readers raise."""
    runs = read_runs(folder)
    rows = differences.read(folder, runs)
    sections = [
        *recognition.sections(runs),
        *paper.sections(runs),
        *robustness.sections(runs),
        *superb.sections(runs),
        *language_models.sections(folder, runs, rows),
        *differences.sections(rows),
        *calibration.sections(folder, runs),
        *speed.sections(folder, runs),
        *recognition.training_sections(runs),
    ]
    return f"# {title}\n\n{markdown(sections)}"


def write_page(folder: Path, name: str, title: str) -> Path:
    """Write the page into the folder; returns its path."""
    path = folder / name
    write_text(path, page(folder, title))
    return path


def terminal_report(folder: Path, runs: Sequence[Run], rows: Sequence[Mapping[str, Any]], width: int = 100) -> str:
    """The tables that a recipe prints at its end. rows: of differences.json."""
    errors = [
        (recognition.TITLES[method], recognition.error_table(some, method))
        for method, some in recognition.decoded_runs(runs).items()
    ]
    compared = differences.table(rows)
    parts = [
        terminal([*errors, ("Streaming", recognition.latency_table(runs))], width),
        *recognition.streaming_notes(runs),
        "",
        terminal(
            [
                (robustness.TITLE, robustness.table(runs)),
                ("Language models, perplexity per word", language_models.perplexity_table(folder)),
                ("Word error rate (%) by language model", language_models.systems_table(runs)),
                (f"{differences.TITLE} (first - second, 95 % intervals)", compared),
                ("Speed and memory, one thread", speed.speed_table(runs)),
            ],
            width,
        ),
    ]
    return "\n".join(parts)
