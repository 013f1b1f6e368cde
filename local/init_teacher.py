"""Stage 5: the weights the teacher starts from: those that its `pretrained` names, or random ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from distill.config.experiment import Experiment
from distill.stages import Stage, recipe_from, recipe_parser, run_script, run_stage


def main() -> None:
    args = recipe_parser(__doc__).parse_args()
    recipe = recipe_from(args)
    for name in recipe.names:
        experiment = Experiment.load(recipe.experiment_yaml(name), recipe.overrides, recipe.suffix)
        if experiment.stage != 6 or experiment.stage_of_init(recipe.conf_dir, recipe.suffix) != 5:
            continue  # a student's, or one that starts from a training, which must not be overwritten
        settings = {"model": experiment.resolved()["model"], "seed": experiment.seed, **source(experiment)}
        out = recipe.exp(experiment.init or f"{experiment.name}_init")
        run_stage(Stage(5, out, settings, {recipe.lang: 2}), partial(write, experiment, recipe.lang))


def source(experiment: Experiment) -> dict:
    """What is imported, and size and time of its files, so that others of the same name are noticed."""
    if experiment.pretrained is None:
        return {}
    place = Path(experiment.pretrained.partition(":")[2])
    files = sorted(path for path in place.glob("*") if path.is_file()) if place.is_dir() else [place]
    seen = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()}
    return {"pretrained": experiment.pretrained, "files": seen}


def write(experiment: Experiment, lang_dir: Path, folder: Path) -> None:
    """Epoch 0 of an experiment that has not been trained."""
    from distill.graphs.lexicon import Lang
    from distill.train.initial import write_pretrained, write_random

    outputs = Lang.load(lang_dir).outputs
    if experiment.pretrained is None:
        write_random(experiment, outputs, folder)
    else:
        write_pretrained(experiment, outputs, folder)


if __name__ == "__main__":
    run_script(main)
