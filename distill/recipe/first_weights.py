"""Stage 5: the weights the teacher starts from, as epoch 0 of an experiment."""

from __future__ import annotations

from pathlib import Path

from distill.config.experiment import Experiment
from distill.recipe import folders
from distill.recipe.options import Recipe
from distill.recipe.stage import Stage


def first_weights_stage(recipe: Recipe, experiment: Experiment) -> Stage | None:
    """The stage that writes epoch 0; None for a student, and for an experiment that starts from a trained one."""
    if experiment.stage != 6 or experiment.stage_of_init(recipe.conf_dir, recipe.suffix) != 5:
        return None
    settings = {"model": experiment.identity()["model"], "seed": experiment.seed}
    if experiment.pretrained is not None:
        settings["pretrained"] = experiment.pretrained
    inputs: dict[Path, int | None] = {recipe.lang: 2, **dict.fromkeys(source_files(experiment))}
    return Stage(5, recipe.exp(experiment.init or f"{experiment.name}_init"), settings, inputs)


def source_files(experiment: Experiment) -> list[Path]:
    """The files of the checkpoint to import, where they lie on the disk."""
    if experiment.pretrained is None:
        return []
    place = Path(experiment.pretrained.partition(":")[2])
    files = sorted(place.glob("*")) if place.is_dir() else [place]
    return [path for path in files if path.is_file() and path.name not in folders.MARKS]


def write_first_weights(recipe: Recipe, experiment: Experiment, folder: Path) -> None:
    """Random weights from the seed, or those of the checkpoint that `pretrained` names."""
    from distill.graphs.lexicon import Lang
    from distill.train.import_teacher import write_pretrained, write_random

    write = write_random if experiment.pretrained is None else write_pretrained
    write(experiment, Lang.load(recipe.lang).outputs, folder)


def import_checkpoint(source: str, lang: Path | None, out: Path) -> None:
    """A checkpoint as an experiment folder of its own; replaces an earlier import, but no other folder."""
    from distill.graphs.lexicon import Lang
    from distill.train.import_teacher import import_folder

    outputs = Lang.load(lang).outputs if lang else None
    with Stage(5, out, {"from": source}, {}).writing() as folder:
        import_folder(source, outputs, folder, out.name)
