"""Last hidden states of clean and distorted speech: a picture by t-SNE, and distances (papers/003 §6).

    distortions.py EXP_DIR… --cuts data/cuts --part test-clean --conditions YAML --out DIR

Written are distortions.tsv, distortions.json, distortions.svg and distortions.png. Distances are from clean speech, in
units of its spread: between centroids, and a mean between the same utterances.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from distill.analysis import distorted
from distill.config.distortions import CLEAN, Distort
from distill.config.experiment import conditions_of
from distill.config.names import names_of, repeated
from distill.corpora.cut_sets import load_cuts
from distill.data.distortions import Distorter
from distill.data.loader import SpeechDataset, in_order
from distill.files import write_json, write_text
from distill.models import checkpoint
from distill.recipe.options import comparison_parser
from distill.recipe.script import run_script
from distill.report.plots import clouds


def main() -> None:
    parser = comparison_parser(__doc__, "+", "test-clean")
    parser.add_argument("--distortions", default="coloured,gaussian,reverb", help="each alone, comma-separated")
    parser.add_argument("--conditions", type=Path, metavar="YAML", help="further: decoding.conditions of an experiment")
    parser.add_argument("--epoch", choices=("last", "best"), default="last", help="best: by validation loss")
    parser.add_argument("--parts", type=int, default=100, help="points of each distortion, means over utterances")
    args = parser.parse_args()
    if args.parts < 2:
        parser.error(f"--parts {args.parts} must be 2 or more")
    if twice := repeated([folder.name for folder in args.folders]):
        parser.error(f"{', '.join(twice)} is the name of several folders; compare seeds in calls of their own")
    write(args)


def write(args: argparse.Namespace) -> None:
    names = names_of("--distortions", args.distortions)
    settings = {name: Distort.parse({"steps": [[name]]}, "--distortions") for name in names}
    further = conditions_of(args.conditions) if args.conditions else {}
    if twice := sorted(settings.keys() & further.keys()):
        raise ValueError(
            f"--distortions: {', '.join(twice)} is also a condition of {args.conditions}; leave it out, or give that"
            " another name"
        )
    settings |= further
    distorters = {name: Distorter(each, args.cuts.parent) for name, each in settings.items()}
    cuts = load_cuts(args.cuts, [args.part])
    models = {each.name: checkpoint.load_recogniser(each, args.epoch)[0].to(args.device) for each in args.folders}
    versions: dict[str, dict[str, np.ndarray]] = {model: {} for model in models}
    for name, distorter in {CLEAN: None, **distorters}.items():
        reading = SpeechDataset(None, None, 0, False, False, distorter=distorter)
        batches = (batch.to(args.device) for batch in in_order(cuts, reading, max_duration=100))
        for model, states in distorted.mean_states(models, batches, args.parts).items():
            versions[model][name] = states
    panels = {model: distorted.embedded(own) for model, own in versions.items()}
    rows = {model: distorted.distances(own, CLEAN) for model, own in versions.items()}
    lines = [
        f"{model}\t{name}\t{centroids:.4f}\t{same:.4f}\n"
        for model, found in rows.items()
        for name, (centroids, same) in found.items()
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / "distortions.tsv", "model\tdistortion\tcentroids\tsame utterances\n" + "".join(lines))
    write_json(args.out / "distortions.json", {"part": args.part, "parts": args.parts, "distances": rows})
    clouds(panels, args.out / "distortions")


if __name__ == "__main__":
    run_script(main)
