"""Compare two decode folders: difference of error rates with its 95 % interval, and whether it may be chance."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill.files import write_text
from distill.scoring.bootstrap import FEWEST
from distill.scoring.compare import (
    NORMAL_FROM,
    Difference,
    MatchedPairs,
    matched_pairs,
    paired_bootstrap,
    read_speakers,
)
from distill.scoring.wer import read_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ours", type=Path, metavar="DIR_A", help="a folder decode_* that stage 10 wrote")
    parser.add_argument("theirs", type=Path, metavar="DIR_B", help="another, of the same test set")
    parser.add_argument("--by", choices=("utterance", "speaker"), default="utterance", help="what is drawn")
    parser.add_argument("--samples", type=int, default=2000, help="how often the test set is drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    args = parser.parse_args()
    if args.samples < 1:
        parser.error(f"--samples takes a number from 1, got {args.samples}")
    ours, theirs = read_results(args.ours), read_results(args.theirs)
    speakers = read_speakers(args.ours) if args.by == "speaker" else None
    compared = paired_bootstrap(ours, theirs, speakers, args.samples, args.seed)
    tested = matched_pairs(ours, theirs)
    print("\n".join(described(args.ours, args.theirs, compared, tested)))
    if args.json:
        write_text(args.json, json.dumps(content(args, compared, tested), indent=1, sort_keys=True) + "\n")


def described(ours: Path, theirs: Path, compared: Difference, tested: MatchedPairs | None) -> list[str]:
    """Lines for the terminal."""
    width = max(len(str(ours)), len(str(theirs)))
    lines = [f"{letter}  {path!s:{width}}  {rate:7.3f} %" for letter, path, rate in (
        ("A", ours, compared.ours), ("B", theirs, compared.theirs))]  # fmt: skip
    rough = f", rough: below {FEWEST}" if compared.by == "speaker" and compared.units < FEWEST else ""
    lines += [
        f"A - B  {compared.difference:+.3f} %, 95 % interval [{compared.low:+.3f}, {compared.high:+.3f}]"
        f" ({compared.samples} draws of {compared.units} {compared.by}s{rough})",
        f"A is better in {100 * compared.better:.1f} % of the draws, B in {100 * compared.worse:.1f} %",
    ]
    return [*lines, tested_line(tested)]


def tested_line(tested: MatchedPairs | None) -> str:
    """Result of the matched-pairs test, or why there is none."""
    if tested is None:
        return "no matched-pairs test: the references differ, as those of units do, which follow the hypothesis"
    if tested.p is None:
        return f"no matched-pairs test: {tested.segments} segments, which all differ alike"
    rough = f" (rough: below {NORMAL_FROM} segments)" if tested.segments < NORMAL_FROM else ""
    return f"matched pairs of {tested.segments} segments (MAPSSWE): z = {tested.z:+.2f}, p = {tested.p:.3g}{rough}"


def content(args: argparse.Namespace, compared: Difference, tested: MatchedPairs | None) -> dict[str, Any]:
    """Content of the --json file."""
    folders = {"a": str(args.ours), "b": str(args.theirs)}
    return {**folders, **asdict(compared), "matched_pairs": asdict(tested) if tested else None}


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"tools/compare.py: {error}")
