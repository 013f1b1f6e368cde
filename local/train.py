"""Stages 6, 8 and 9: train the experiments of that stage: teacher, students, streaming students."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from distill.config.experiment import Experiment
from distill.files import replacing
from distill.stages import Recipe, Stage, command_line, recipe_from, recipe_parser, run_script, run_stage


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--stage", type=int, required=True, choices=(6, 8, 9))
    args = parser.parse_args()
    recipe = recipe_from(args)
    for name in recipe.names:
        experiment = Experiment.load(recipe.experiment_yaml(name), recipe.overrides, recipe.suffix)
        if experiment.stage == args.stage:
            stage = Stage(
                args.stage,
                recipe.exp(experiment.name),
                identity(experiment),
                inputs(recipe, experiment),
                resumable=True,
            )
            run_stage(stage, partial(train, recipe, experiment))


def identity(experiment: Experiment) -> dict:
    """What a training depends on: all settings but how it is decoded and described."""
    return {k: v for k, v in experiment.resolved().items() if k not in ("decoding", "description", "pretrained")}


def inputs(recipe: Recipe, experiment: Experiment) -> dict[Path, int]:
    """Folders that a training reads, and the stages that make them."""
    needed = {recipe.cuts: 0, recipe.lang: 2, recipe.graphs: 4}
    if experiment.init:
        needed[recipe.exp(experiment.init)] = experiment.stage_of_init(recipe.conf_dir, recipe.suffix)
    if experiment.teacher is not None:
        needed[recipe.exp(experiment.teacher.experiment)] = 6
        needed[recipe.num / experiment.teacher.experiment] = 7
    return needed


def train(recipe: Recipe, experiment: Experiment, folder: Path) -> None:
    """Train to the end and write result.json."""
    import torch

    from distill.train.distributed import join
    from distill.train.monitor import commit, hardware
    from distill.train.setup import Folders, build_trainer

    ranks, device = join(recipe.device)
    torch.set_num_threads(ranks.threads(recipe.nj))
    folders = Folders(recipe.data_dir, recipe.lang, recipe.graphs, recipe.exp_dir)
    trainer = build_trainer(experiment, folders, folder, recipe.engine, ranks, device)
    result = {
        **trainer.run(),
        "experiment": experiment.name,
        "description": experiment.description,
        "corpus": recipe.corpus,
        "commit": commit(),
        "config": experiment.resolved(),
        "hardware": hardware(device),
        "ranks": ranks.world,
        "command": command_line(),
    }
    if ranks.first:
        with replacing(folder / "result.json") as temporary:
            temporary.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
