"""Stages 6, 8 and 9: train the experiments of that stage: teacher, students, streaming students."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distill.config.experiment import Experiment
from distill.files import write_json
from distill.recipe.options import Recipe, recipe_from, recipe_parser
from distill.recipe.script import command_line, run_script
from distill.recipe.stage import Stage, relaunched, run_stage

if TYPE_CHECKING:
    from distill.train.distributed import Ranks


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--stage", type=int, required=True, choices=(6, 8, 9))
    args = parser.parse_args()
    recipe = recipe_from(args)
    loaded = [Experiment.load(recipe.experiment_yaml(name), recipe.overrides, recipe.suffix) for name in recipe.names]
    experiments = [experiment for experiment in loaded if experiment.stage == args.stage]
    if relaunched(recipe, [stage_of(recipe, experiment) for experiment in experiments]):
        return
    ranks = joined(recipe)
    for experiment in experiments:
        run_stage(stage_of(recipe, experiment), partial(train, recipe, experiment), ranks)


def stage_of(recipe: Recipe, experiment: Experiment) -> Stage:
    folder = recipe.exp(experiment.name)
    return Stage(experiment.stage, folder, identity(experiment), inputs(recipe, experiment), resumable=True)


def joined(recipe: Recipe) -> Ranks | None:
    """The processes that a launcher started with this one; without one torch is not imported before there is work."""
    if "RANK" not in os.environ:
        return None
    from distill.train.distributed import join

    return join(recipe.device)[0]


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

    from distill.recipe.provenance import commit, hardware
    from distill.train.distributed import join
    from distill.train.setup import Folders, build_trainer

    ranks, device = join(recipe.device)
    torch.set_num_threads(recipe.threads)
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
        write_json(folder / "result.json", result)


if __name__ == "__main__":
    run_script(main)
