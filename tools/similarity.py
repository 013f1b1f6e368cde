"""Similarity of the blocks of two experiments over a cut set: SVCCA and linear CKA, as a table and a picture.

    similarity.py EXP_DIR EXP_DIR --cuts data/cuts --part dev --out DIR

The first experiment's frames are at least as many as the second's: a teacher, and then its student. Written are
similarity.tsv, similarity.json, similarity.svg and similarity.png. Block 0 is the input of the first block.
"""

from __future__ import annotations

import argparse

import torch

from distill.analysis import similarity
from distill.analysis.hidden import paired_states
from distill.corpora.cut_sets import load_cuts
from distill.data.loader import SpeechDataset, in_order
from distill.files import write_json, write_text
from distill.models import checkpoint
from distill.recipe.options import comparison_parser
from distill.recipe.script import run_script
from distill.report.plots import heat_maps

FRAMES = 100  # of an utterance


def main() -> None:
    parser = comparison_parser(__doc__, 2, "dev")
    parser.add_argument("--utterances", type=int, default=100, help=f"of it, each with up to {FRAMES} frames")
    args = parser.parse_args()
    if args.utterances < 1:
        parser.error(f"--utterances {args.utterances} must be 1 or more")
    write(args)


def write(args: argparse.Namespace) -> None:
    first, second = (checkpoint.load_recogniser(folder)[0].to(args.device) for folder in args.folders)
    cuts = load_cuts(args.cuts, [args.part])
    chosen = list(cuts)[:: max(1, len(cuts) // args.utterances)][: args.utterances]
    batches = in_order(chosen, SpeechDataset(None, None, 0, False, False), max_duration=100)
    states = paired_states(first, second, (batch.to(torch.device(args.device)) for batch in batches), FRAMES)
    measures, names = similarity.by_block(*states), [folder.name for folder in args.folders]
    rows = ["\t".join([*names, *measures])]
    for i, j in ((i, j) for i in range(len(states[0])) for j in range(len(states[1]))):
        rows.append("\t".join([str(i), str(j), *(f"{values[i, j]:.4f}" for values in measures.values())]))
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / "similarity.tsv", "\n".join(rows) + "\n")
    content = {"experiments": names, "part": args.part, "utterances": len(chosen), "frames": len(states[0][0])}
    write_json(args.out / "similarity.json", content | {name: values.tolist() for name, values in measures.items()})
    heat_maps(measures, f"block of {names[1]}", f"block of {names[0]}", args.out / "similarity")


if __name__ == "__main__":
    run_script(main)
