"""Write a small graph as Graphviz text: a k2 dict (denominator.pt, HLG.pt, L_disambig.pt) or an OpenFst file (HLG.fst).

python tools/draw_graph.py data/lang_phones/L_disambig.pt --states 40 --output L.dot && dot -Tsvg L.dot -o L.svg
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from distill.files import write_text
from distill.fsa.k2_format import load_dict, transducer_to_k2_dict
from distill.graphs.dot import dot
from distill.graphs.lexicon import read_symbols


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="the .dot file; Graphviz renders it (dot -Tsvg)")
    parser.add_argument("--isymbols", type=Path, help="names of the labels: lines 'symbol number', such as tokens.txt")
    parser.add_argument("--osymbols", type=Path, help="names of the output labels, such as words.txt")
    parser.add_argument("--states", type=int, default=0, help="draw only the N states nearest to the start")
    args = parser.parse_args()
    inputs, outputs = (
        {n: symbol for symbol, n in read_symbols(path).items()} if path else {}
        for path in (args.isymbols, args.osymbols)
    )
    text = dot(read(args.file), inputs, outputs, args.states, str(args.file))
    write_text(args.output, text)
    print(f"render it with Graphviz: dot -Tsvg {args.output} -o {args.output.with_suffix('.svg')}")


def read(path: Path) -> object:
    """A graph file as a k2 dict."""
    if path.suffix != ".fst":
        return load_dict(path)
    import kaldifst

    if not path.is_file():
        raise FileNotFoundError(f"no graph at {path}")
    return transducer_to_k2_dict(kaldifst.StdVectorFst.read(str(path)))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"tools/draw_graph.py: {error}")
