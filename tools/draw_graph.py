"""Draw a small graph as SVG: a k2 dict (denominator.pt, HLG.pt, L_disambig.pt) or an OpenFst file (HLG.fst)."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from distill.graphs.drawing import draw, picture_of, read_content
from distill.graphs.lexicon import read_symbols


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="where the picture goes")
    parser.add_argument("--isymbols", type=Path, help="names of the labels: lines 'symbol number', such as tokens.txt")
    parser.add_argument("--osymbols", type=Path, help="names of the output labels, such as words.txt")
    parser.add_argument("--states", type=int, default=0, help="draw only the N states nearest to the start")
    args = parser.parse_args()
    try:
        picture = picture_of(read_content(args.file), names(args.isymbols), names(args.osymbols), args.states)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"draw_graph.py: {error}")
    temporary = args.output.with_name(args.output.name + ".tmp")
    temporary.write_text(draw(picture), encoding="utf-8")
    os.replace(temporary, args.output)
    print(f"{len(picture.states)} states, {sum(map(len, picture.arcs.values()))} arcs: {args.output}")


def names(path: Path | None) -> dict[int, str]:
    """Symbols by number; nothing without a file."""
    return {number: symbol for symbol, number in read_symbols(path).items()} if path else {}


if __name__ == "__main__":
    main()
