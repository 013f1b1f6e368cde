"""Stage 13: the tables of an exp-dir, printed and as RESULTS.md."""

from __future__ import annotations

from distill import report
from distill.stages import recipe_from, recipe_parser, run_script


def main() -> None:
    recipe = recipe_from(recipe_parser(__doc__).parse_args())
    runs = report.read_runs(recipe.exp_dir)
    path = recipe.exp_dir / "RESULTS.md"
    report.write_text(path, f"# Results: {recipe.corpus}\n\n{report.markdown_report(runs)}")
    print(report.terminal_report(runs))
    print(f"all of it: {path}")


if __name__ == "__main__":
    run_script(main)
