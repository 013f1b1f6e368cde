"""Write RESULTS.md, the pages it links to and README's figures; --collect copies an exp-dir's result files first."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from distill.report import overview
from distill.report.collect import collect

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collect", type=Path, metavar="EXP_DIR", help="copy this exp-dir's result files first")
    parser.add_argument("--corpus", help="with --collect: the recipe below egs/ it belongs to")
    parser.add_argument("--label", help="with --collect: name of the results, such as mini or full")
    args = parser.parse_args()
    if args.collect:
        if not (args.corpus and args.label):
            parser.error("--collect needs --corpus and --label")
        target = ROOT / "egs" / args.corpus / "results" / args.label
        copies = collect(args.collect.resolve(), target, ROOT)
        print(f"{len(copies)} files below egs/{args.corpus}/results/{args.label}")
    for page in overview.write(ROOT):
        print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"tools/report.py: {error}")
