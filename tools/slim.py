"""Write what an experiment's gates leave as an ordinary, smaller experiment; or show ranks of its linear maps.

    slim.py --exp-dir egs/librispeech/exp/l0_kd --out egs/librispeech/exp/l0_kd_slim
    slim.py --exp-dir egs/librispeech/exp/hubert --energy 0.9

The new experiment gives the same outputs; its settings, which are printed, have the widths that are left.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import yaml

from distill.config.experiment import Experiment
from distill.files import replacing
from distill.models import checkpoint
from distill.models.encoder import BLOCKS
from distill.models.low_rank import rank_of_energy
from distill.models.pruning import slimmed
from distill.models.recogniser import Recogniser, count_parameters
from distill.recipe.script import run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp-dir", type=Path, required=True, help="an experiment's folder; its last epoch is taken")
    to_do = parser.add_mutually_exclusive_group(required=True)
    to_do.add_argument("--out", type=Path, help="folder of the smaller experiment")
    parser.add_argument(
        "--sparsity", type=float, help="with --out: share of the parameters to close, if not what training reached"
    )
    to_do.add_argument("--energy", type=float, help="share of the squares of each linear map that a rank is to keep")
    args = parser.parse_args()
    if args.energy is not None and args.sparsity is not None:
        parser.error("--sparsity is of --out; leave it out with --energy")
    if args.energy is None:
        write(args.exp_dir, args.out, args.sparsity)
    else:
        show_ranks(checkpoint.load_recogniser(args.exp_dir)[0], args.energy)


def write(source: Path, out: Path, sparsity: float | None = None) -> None:
    model, experiment, _, epoch = checkpoint.load_recogniser(source)
    if out.exists():
        raise ValueError(f"{out} is there already; give another --out")
    if sparsity is not None:
        model.gates.settle(sparsity)
    small = slimmed(model)
    settings = {**experiment.resolved(), "name": out.name, "model": small.settings.resolved()}
    settings["objective"]["sparsity"] = None
    Experiment.parse(settings, str(out))  # as loading does: a name that is none, an objective without a term
    content = {**checkpoint.load_epoch(source), "model": small.state_dict(), "experiment": settings}
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        temporary.mkdir(exist_ok=True)
        checkpoint.save(temporary / f"epoch-{epoch}.pt", content)
    before, after = (count_parameters(each)["trunk"] for each in (model, small))
    print(f"{before:,} -> {after:,} parameters of front-end and encoder, {1 - after / before:.2%} less")
    names = (*BLOCKS[small.settings.encoder.block].units(small.settings.encoder, 0), "head_dim", "always_project")
    encoder = {name: settings["model"]["encoder"][name] for name in names}
    shape = {"front_end": {"layers": settings["model"]["front_end"]["layers"]}, "encoder": encoder}
    print(yaml.safe_dump({"model": shape}, default_flow_style=None, sort_keys=False))


def show_ranks(model: Recogniser, energy: float) -> None:
    for name, module in model.encoder.blocks.named_modules():
        if isinstance(module, torch.nn.Linear):
            print(f"{name}\trank {rank_of_energy(module.weight, energy)} of {min(module.weight.shape)}")


if __name__ == "__main__":
    run_script(main)
