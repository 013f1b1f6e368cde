"""Write a recipe's lang folder, graphs, numerators and model in the form that icefall's scripts read.

python tools/export_icefall.py --lang-dir data/lang_phones --graphs-dir data/graphs --exp-dir exp/ss --out icefall
writes icefall/lang/{tokens.txt,words.txt,L.pt,L_disambig.pt,P.fst.txt,HLG.pt,…} and icefall/exp/pretrained.pt,
with --num-dir data/num/teacher/unlabelled also icefall/num/num-*.pt. icefall's load_checkpoint reads an
experiment's own epoch-N.pt unchanged.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.fsa.graph import Fsa, Hmm
    from distill.graphs.lexicon import Lang


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lang-dir", type=Path, required=True, help="lang folder of stage 2")
    parser.add_argument("--graphs-dir", type=Path, required=True, help="graphs folder of stage 4")
    parser.add_argument("--exp-dir", type=Path, help="an experiment's folder, for its model")
    parser.add_argument("--epoch", type=int, help="of the model; default: the last")
    parser.add_argument("--avg", type=int, default=1, help="average so many epochs up to that one")
    parser.add_argument("--num-dir", type=Path, help="lattices of stage 7 of one part, for numerators")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from distill.fsa.k2_format import load_fsa
    from distill.fsa.lattice import DecodingGraph
    from distill.graphs.icefall_lang import write_icefall_lang, write_numerators
    from distill.graphs.lexicon import Lang

    lang, unit_lm = Lang.load(args.lang_dir), load_fsa(args.graphs_dir / "denominator.pt")
    write_icefall_lang(lang, args.out / "lang", unit_lm, DecodingGraph.read(args.graphs_dir / "HLG.fst"))
    if args.num_dir:
        count = write_numerators(numerators(lang, unit_lm, args.num_dir), args.out / "num")
        print(f"{count} numerators in {args.out / 'num'}")
    if args.exp_dir:
        from distill.models.checkpoint import export_weights

        (args.out / "exp").mkdir(parents=True, exist_ok=True)
        path, last = args.out / "exp" / "pretrained.pt", args.epoch is None
        epoch = export_weights(args.exp_dir, path, "last" if last else args.epoch, args.avg)
        print(f"epoch {epoch} of {args.exp_dir} in {args.out / 'exp' / 'pretrained.pt'}")


def numerators(lang: Lang, unit_lm: Fsa, folder: Path) -> Iterator[tuple[str, Hmm]]:
    """(cut id, graph) of the lattices of a part; cuts without a numerator are named."""
    from distill.data.lattices import Lattices
    from distill.data.numerators import Numerators, Wanted
    from distill.graphs.numerator import UnitLm

    stored = Lattices([folder])
    made = Numerators(lang, UnitLm(unit_lm, lang.topology.num_units), stored)
    for number, shard in enumerate(stored.shards()):
        cuts = sorted(shard)
        for cut, graph in zip(cuts, made.graphs([Wanted(cut, None, f"{folder.name}/{number}") for cut in cuts])):
            if isinstance(graph, str):
                logging.warning("%s is left out: %s", cut, graph)
            else:
                yield cut, graph


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"tools/export_icefall.py: {error}")
