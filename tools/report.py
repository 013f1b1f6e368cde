"""Write RESULTS.md from the committed egs/*/results and benchmarks; --collect copies an exp-dir's figures first."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from distill.report import benchmarks, calibration, differences, language_models, recognition, speed

ROOT = Path(__file__).resolve().parents[1]
INTRODUCTION = """# Results

Written by `tools/report.py` from `egs/*/results/**/result.json` and `wer.json`, and `benchmarks/*.json`; do not edit.
Rates are in percent; intervals are 95 % bootstrap intervals over utterances.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collect", type=Path, metavar="EXP_DIR", help="copy this exp-dir's figures first")
    parser.add_argument("--corpus", help="with --collect: the recipe below egs/ it belongs to")
    parser.add_argument("--label", help="with --collect: name of the results, such as mini or full")
    args = parser.parse_args()
    if args.collect:
        if not (args.corpus and args.label):
            parser.error("--collect needs --corpus and --label")
        target = ROOT / "egs" / args.corpus / "results" / args.label
        exp_dir = args.collect.resolve()
        further = [differences.DIFFERENCES, *language_models.files(exp_dir)]
        further += calibration.files(recognition.read_runs(exp_dir))
        copies = recognition.collect(exp_dir, target, ROOT, further)
        print(f"{len(copies)} files below egs/{args.corpus}/results/{args.label}")
    recognition.write_text(ROOT / "RESULTS.md", whole(ROOT))
    print(f"wrote {ROOT / 'RESULTS.md'}")


def whole(root: Path) -> str:
    """The text of RESULTS.md: a section for every egs/<corpus>/results/<label>."""
    folders = sorted({path.parents[1] for path in root.glob("egs/*/results/*/*/result.json")})
    parts = [INTRODUCTION] if folders else [INTRODUCTION, "No results are committed yet.\n"]
    for folder in folders:
        title = f"## {folder.parents[1].name}, {folder.name}"
        runs = recognition.read_runs(folder)
        plot, compared = folder / speed.PLOT, differences.read(folder, runs)
        further = [
            *language_models.sections(folder, runs, compared),
            *differences.sections(compared),
            *calibration.sections(folder, runs, (folder / calibration.PLOT).relative_to(root).as_posix()),
            *speed.sections(runs, plot, plot.relative_to(root).as_posix()),
        ]
        parts.append(f"{title}\n\n{recognition.markdown_report(runs, 3, further)}")
    for path in sorted((root / "benchmarks").glob("*.json")):
        lines = benchmarks.benchmark_lines(benchmarks.read_benchmark(path))
        parts.append("\n".join([f"## Benchmark {path.stem}", "", *lines, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"tools/report.py: {error}")
