"""Stage 5: the weights the teacher starts from; random ones where no pre-trained model is imported."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from distill.config import Experiment
from distill.stages import Stage, recipe_from, recipe_parser, run_script, run_stage


def main() -> None:
    args = recipe_parser(__doc__).parse_args()
    recipe = recipe_from(args)
    for name in recipe.names:
        experiment = Experiment.load(recipe.experiment_yaml(name), recipe.overrides, recipe.suffix)
        if experiment.stage != 6:
            continue
        settings = {"model": experiment.resolved()["model"], "seed": experiment.seed}
        out = recipe.exp(experiment.init or f"{experiment.name}_init")
        run_stage(Stage(5, out, settings, {recipe.lang: 2}), partial(write, experiment, recipe.lang))


def write(experiment: Experiment, lang_dir: Path, folder: Path) -> None:
    """Random weights as epoch 0 of an experiment that has not been trained."""
    from distill.graphs.lexicon import Lang
    from distill.models.build import build_model
    from distill.train import checkpoint

    outputs = Lang.load(lang_dir).outputs
    model = build_model(experiment.model, len(outputs), experiment.seed)
    content = {
        "model": model.state_dict(),
        "objective": {},
        "experiment": experiment.resolved(),
        "units": outputs,
        "progress": {"updates": 0},
    }
    checkpoint.save(folder / "epoch-0.pt", content)


if __name__ == "__main__":
    run_script(main)
