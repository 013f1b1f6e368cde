"""Stage 5: the weights the teacher starts from: those that its `pretrained` names, or random ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from distill.config.experiment import Experiment
from distill.recipe import folders
from distill.recipe.options import recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import Stage, run_stage


def main() -> None:
    args = recipe_parser(__doc__).parse_args()
    recipe = recipe_from(args)
    for name in recipe.names:
        experiment = Experiment.load(recipe.experiment_yaml(name), recipe.overrides, recipe.suffix)
        if experiment.stage != 6 or experiment.stage_of_init(recipe.conf_dir, recipe.suffix) != 5:
            continue  # a student's, or one that starts from a training, which must not be overwritten
        settings = {"model": experiment.resolved()["model"], "seed": experiment.seed}
        if experiment.pretrained is not None:
            settings["pretrained"] = experiment.pretrained
        out = recipe.exp(experiment.init or f"{experiment.name}_init")
        needed = {recipe.lang: 2, **dict.fromkeys(source(experiment))}
        run_stage(Stage(5, out, settings, needed), partial(write, experiment, recipe.lang))


def source(experiment: Experiment) -> list[Path]:
    """The files that are imported, where they lie on the disk."""
    if experiment.pretrained is None:
        return []
    place = Path(experiment.pretrained.partition(":")[2])
    files = sorted(place.glob("*")) if place.is_dir() else [place]
    return [path for path in files if path.is_file() and path.name not in folders.MARKS]


def write(experiment: Experiment, lang_dir: Path, folder: Path) -> None:
    """Epoch 0 of an experiment that has not been trained."""
    from distill.graphs.lexicon import Lang
    from distill.train.import_teacher import write_pretrained, write_random

    outputs = Lang.load(lang_dir).outputs
    if experiment.pretrained is None:
        write_random(experiment, outputs, folder)
    else:
        write_pretrained(experiment, outputs, folder)


if __name__ == "__main__":
    run_script(main)
