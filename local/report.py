"""Stage 13: the tables of an exp-dir and the differences between its decodings, printed and as RESULTS.md."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.recipe.options import recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.report import calibration, differences, language_models, recognition, speed

log = logging.getLogger("report")


def main() -> None:
    recipe = recipe_from(recipe_parser(__doc__).parse_args())
    runs = recognition.read_runs(recipe.exp_dir)
    differences.write(recipe.exp_dir, list(compared(recipe.exp_dir, runs)))
    rows = differences.read(recipe.exp_dir, runs)
    path = recipe.exp_dir / "RESULTS.md"
    further = [
        *language_models.sections(recipe.exp_dir, runs, rows),
        *differences.sections(rows),
        *calibration.sections(recipe.exp_dir, runs),
        *speed.sections(runs, recipe.exp_dir / speed.PLOT),
    ]
    text = recognition.markdown_report(runs, further=further)
    recognition.write_text(path, f"# Results: {recipe.corpus}\n\n{text}")
    print(recognition.terminal_report(runs))
    print(language_models.terminal(recipe.exp_dir, runs))
    print(differences.terminal(rows))
    print(speed.terminal(runs))
    print(f"all of it: {path}")


def compared(exp_dir: Path, runs: Sequence[recognition.Run]) -> Iterator[dict[str, Any]]:
    """A row for each pair of decodings whose utterances are there and the same."""
    from distill.scoring.compare import compare_folders

    for pair in differences.pairs(runs):
        try:
            yield differences.row(pair, compare_folders(*pair.folders(exp_dir)))
        except (FileNotFoundError, ValueError) as error:
            log.warning("%s and %s, %s: not compared: %s", pair.ours, pair.theirs, pair.test_set, error)


if __name__ == "__main__":
    run_script(main)
