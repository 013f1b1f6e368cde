"""Stage 13: the tables of an exp-dir and the differences between its decodings, printed and as RESULTS.md."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.recipe.options import recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.report import differences
from distill.report.experiments import terminal_report, write_page
from distill.report.runs import Run, read_runs

log = logging.getLogger("report")


def main() -> None:
    recipe = recipe_from(recipe_parser(__doc__).parse_args())
    runs = read_runs(recipe.exp_dir)
    rows = list(compared(recipe.exp_dir, runs))
    differences.write(recipe.exp_dir, rows)
    path = write_page(recipe.exp_dir, "RESULTS.md", f"Results: {recipe.corpus}")
    print(terminal_report(recipe.exp_dir, runs, rows))
    print(f"all tables: {path}")


def compared(exp_dir: Path, runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """One row per pair of decodings that have the same utterances."""
    from distill.scoring.compare import compare_folders

    for pair in differences.pairs(runs):
        try:
            yield differences.row(pair, compare_folders(*pair.folders(exp_dir)))
        except (FileNotFoundError, ValueError) as error:
            log.warning("%s and %s, %s: not compared: %s", pair.ours, pair.theirs, pair.test_set, error)


if __name__ == "__main__":
    run_script(main)
