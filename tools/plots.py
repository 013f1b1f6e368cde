"""Draw the loss curves of trainings, and error rates over epochs where several were decoded, as SVG and PNG."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from distill.report import curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="EXP_DIR", help="experiments, or the folder of all")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where plots are written; default: EXP_DIR/plots")
    args = parser.parse_args()
    for path in curves.draw(args.folders, args.out or args.folders[0] / "plots"):
        print(path)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"tools/plots.py: {error}")
