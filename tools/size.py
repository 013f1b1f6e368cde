"""Size and predicted speed of an experiment's model, before anything is trained.

    size.py egs/librispeech/conf/s5_stream.yaml [--outputs 43] [--json FILE] [--set model.encoder.layers=8]

Parameters, multiply-adds for a second of audio, and without the head for the 225 s of the 32 utterances of SUPERB's
challenge, which papers give; look-ahead of every part in ms, and the real-time factor to be expected on one thread of
this machine (streaming: a chunk with its whole history; else an utterance of 15 s).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from distill.config.experiment import Experiment
from distill.files import write_text
from distill.models.cost import parameters, predict_rtf, quantizer_parameters
from distill.models.latency import latency
from distill.models.macs import macs, superb_macs
from distill.models.pruning import check_rank
from distill.plan.memory import terms_of
from distill.plan.training import teacher_beside
from distill.recipe.provenance import hardware
from distill.recipe.script import run_script

LARGE, BASE = 768, 256
MOST_OUTPUTS = 10**6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("yaml", type=Path, nargs="+", help="experiments")
    parser.add_argument("--outputs", type=int, default=43, help="units of the lang folder, blank included")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    args = parser.parse_args()
    if not 1 <= args.outputs <= MOST_OUTPUTS:
        parser.error(f"--outputs: units of a lang folder, 1 to {MOST_OUTPUTS}, are needed (got {args.outputs})")
    rows = [measure(path, args.outputs, args.set) for path in args.yaml]
    for row in rows:
        show(row)
    if args.json:
        content = {"hardware": hardware(torch.device("cpu")), "rows": rows}
        write_text(args.json, json.dumps(content, indent=1) + "\n")


def measure(path: Path, outputs: int, overrides: list[str]) -> dict:
    """Everything that is known of one experiment's model."""
    experiment = Experiment.load(path, overrides)
    model = experiment.model
    check_rank(model)
    counts = {**parameters(model, outputs), "training_only": training_only(experiment, path.parent)}
    if experiment.stage == 6:
        code_dim = LARGE if model.encoder.norm_first else BASE
        quantizer = quantizer_parameters(model.front_end.layers[-1][0], model.encoder.dim, code_dim)
        counts["trunk_with_wav2vec2_quantizer"] = counts["trunk"] + quantizer
    per_second = macs(model, outputs)
    return {
        "experiment": experiment.name,
        "slimmed": experiment.init_slim,
        "outputs": outputs,
        "params": counts,
        "macs_per_second": {**per_second, "total": sum(per_second.values())},
        "macs_superb": superb_macs(model),
        "latency_ms": asdict(latency(model)),
        "rtf_predicted": predict_rtf(model, outputs),
    }


def training_only(experiment: Experiment, conf_dir: Path) -> int:
    """Parameters of loss terms: the W_i of hidden-layer distillation, heads of pre-training."""
    if not experiment.trained:
        return 0
    terms = terms_of(experiment, teacher_beside(experiment, conf_dir))
    return sum(parameter.numel() for term in terms.values() for parameter in term.parameters())


def show(row: dict) -> None:
    print(f"\n{row['experiment']} ({row['outputs']} outputs)")
    if row["slimmed"]:
        print("  before slimming (init_slim): what is left is known when its start is trained")
    for name, count in row["params"].items():
        print(f"  {name:32}{count:>16,}  parameters")
    for name, count in row["macs_per_second"].items():
        print(f"  {name:32}{count / 1e6:>16,.1f}  million multiply-adds for a second of audio")
    print(f"  {'trunk, 32 utterances of SUPERB':32}{row['macs_superb'] / 1e9:>16,.1f}  thousand million multiply-adds")
    for part in row["latency_ms"]["parts"]:
        print(f"  {part['name']:32}{shown(part):>16}  ms look-ahead, mean and maximum")
    print(f"  {'all parts':32}{shown(row['latency_ms']):>16}  ms look-ahead, mean and maximum")
    for name, factor in row["rtf_predicted"].items():
        print(f"  {name:32}{factor:>16.4f}  real-time factor predicted, one thread")


def shown(delay: dict) -> str:
    return "whole utterance" if delay["max"] is None else f"{delay['mean']:.1f}, {delay['max']:.1f}"


if __name__ == "__main__":
    run_script(main)
