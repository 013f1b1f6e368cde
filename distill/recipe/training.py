"""Stages 5, 6, 8 and 9: the training of an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.config.experiment import Experiment, maker_of, stage_of
from distill.config.language_model import LanguageModel
from distill.files import write_json
from distill.recipe.options import Recipe
from distill.recipe.provenance import command_line, commit, hardware
from distill.recipe.script import log_to
from distill.recipe.stage import Stage
from distill.recipe.units import units_stage
from distill.report.results import TrainingResult

if TYPE_CHECKING:
    import torch

    from distill.train.distributed import Ranks


def training_stage(recipe: Recipe, experiment: Experiment) -> Stage:
    """The stage that trains an experiment; its inputs are folders, with the stages that make them."""
    inputs = {**recipe.cut_sets(experiment.data.parts), recipe.lang: 2}
    if experiment.supervised:
        inputs[recipe.training_graphs(experiment)] = 4
    if experiment.init:
        inputs[recipe.exp(experiment.init)] = stage_of(experiment.maker_of_init(recipe.conf_dir, recipe.suffix))
    if experiment.teacher is not None:
        teacher = experiment.teacher.experiment
        inputs[recipe.exp(teacher)] = stage_of(maker_of(recipe.conf_dir, teacher, recipe.suffix))
        if experiment.reads_lattices:
            inputs[recipe.num / teacher] = 7
    if stage := units_stage(recipe, experiment):
        inputs[stage.out] = stage.number
    settings = {**experiment.identity(), **recipe.noise_files(experiment.noises.values())}
    return Stage(experiment.stage, recipe.exp(experiment.name), settings, inputs, resumable=True)


def train(recipe: Recipe, experiment: Experiment, folder: Path) -> None:
    """Train to the end and write result.json."""
    import torch

    from distill.train.distributed import join
    from distill.train.setup import Folders, build_trainer

    ranks, device = join(recipe.device)
    torch.set_num_threads(recipe.threads)
    folders = Folders(recipe.data_dir, recipe.lang, recipe.training_graphs(experiment), recipe.exp_dir)
    with log_to(folder):
        trainer = build_trainer(experiment, folders, folder, recipe.engine, ranks, device)
        write_result(recipe, trainer.plan.settings, trainer.run(), ranks, device, folder)


def write_result(
    recipe: Recipe, settings: Experiment | LanguageModel, training: Mapping[str, Any], ranks: Ranks,
    device: torch.device, folder: Path,
) -> None:  # fmt: skip
    """result.json, by the first rank: figures of a training, its settings, and where and how it ran."""

    if not ranks.first:
        return
    description = {"experiment": settings.name, "description": settings.description, "corpus": recipe.corpus}
    where = {"commit": commit(), "hardware": hardware(device), "ranks": ranks.world, "command": command_line()}
    result = {**training, **description, "config": settings.resolved(), **where}
    if isinstance(settings, Experiment):
        TrainingResult.model_validate(result).write(folder / "result.json")
    else:
        write_json(folder / "result.json", result)
