"""Write what an experiment's gates leave as an ordinary, smaller experiment; or show ranks of its linear maps.

    slim.py --exp-dir egs/librispeech/exp/l0_kd --out egs/librispeech/exp/l0_kd_slim
    slim.py --exp-dir egs/librispeech/exp/hubert --energy 0.9

The new experiment gives the same outputs; its settings, NAME.yaml in its folder, have the widths that are left.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from distill.config.experiment import Experiment, check_own_name
from distill.files import write_text
from distill.models import checkpoint
from distill.models.cost import parameters
from distill.models.low_rank import greatest_rank, linear_maps, rank_of_energy
from distill.models.pruning import slimmed
from distill.models.recogniser import Recogniser, count_parameters
from distill.recipe.script import run_script
from distill.recipe.stage import SLIMMED, Stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp-dir", type=Path, required=True, help="an experiment's folder; its last epoch is taken")
    to_do = parser.add_mutually_exclusive_group(required=True)
    to_do.add_argument("--out", type=Path, help="folder of the smaller experiment")
    parser.add_argument("--sparsity", type=float, help="with --out: share to close, if not what training reached")
    to_do.add_argument("--energy", type=float, help="share of the squares of each linear map that a rank is to keep")
    args = parser.parse_args()
    if args.energy is not None and not 0 < args.energy <= 1:
        parser.error(f"--energy: a share, such as 0.9, is needed (got {args.energy:g})")
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
    if not model.gates.each:
        raise ValueError(f"{source} has no gates (model.pruning), so that nothing is cut off; give one that has them")
    check_own_name(out.name)
    if sparsity is not None:
        model.gates.settle(sparsity)
    small = slimmed(model)
    start = {"init": source.resolve().name, "init_slim": True, "init_sparsity": sparsity or 0.0, "init_epoch": "last"}
    settings = {**experiment.resolved(), **start, "init_slice": [], "init_blocks": []}
    settings |= {"name": out.name, "model": small.settings.resolved()}
    settings["objective"]["sparsity"] = None
    left = Experiment.parse(settings, str(out))  # as loading does: a name that is none, an objective without a term
    content = {**checkpoint.load_epoch(source), "model": small.state_dict(), "experiment": settings}
    made = Stage(experiment.stage, out, {SLIMMED: sparsity}, {checkpoint.epoch_paths(source)[epoch]: None})
    with made.writing() as folder:
        checkpoint.save(folder / f"epoch-{epoch}.pt", content)
        lines = f"# What the gates of {source.name} left.\n{yaml.safe_dump(left.changed(), sort_keys=False)}"
        write_text(folder / f"{out.name}.yaml", lines)
    before, after = (count_parameters(each)["trunk"] for each in (model, small))
    print(f"{before:,} -> {after:,} parameters of front-end and encoder, {1 - after / before:.2%} less")
    print(f"settings: {out / out.name}.yaml; put it beside the recipe's others, and run stages 10 to 12 of it")


def show_ranks(model: Recogniser, energy: float) -> None:
    maps, encoder = linear_maps(model.encoder.blocks), model.settings.encoder
    for name, weight in maps.items():
        print(f"{name}\trank {rank_of_energy([weight], energy)} of {min(weight.shape)}")
    rank = rank_of_energy([*maps.values()], energy)
    factored = model.settings.model_copy(update={"encoder": encoder.model_copy(update={"rank": rank})})
    now, then = (parameters(each, model.outputs)["trunk"] for each in (model.settings, factored))
    if rank > greatest_rank(model.encoder.blocks):
        print(f"encoder.rank: {rank} would keep that share of all, and makes no map smaller; give a smaller share")
        return
    print(f"encoder.rank: {rank} keeps that share of all; {now:,} -> {then:,} parameters of front-end and encoder")


if __name__ == "__main__":
    run_script(main)
