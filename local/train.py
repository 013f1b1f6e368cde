"""Stages 5, 6, 8 and 9: train the experiments of that stage: pre-training, teacher, students, streaming students.

Stage 5 first writes the weights that teachers start from: those that their `pretrained` names, or random ones.
"""

from __future__ import annotations

import logging
from functools import partial

from distill.config.experiment import Experiment
from distill.recipe import launch
from distill.recipe.first_weights import first_weights_stage, write_first_weights
from distill.recipe.options import Recipe, recipe_from, recipe_parser
from distill.recipe.parallel import join
from distill.recipe.script import run_script
from distill.recipe.stage import Stage, relaunched, run_stage
from distill.recipe.training import train, training_stage
from distill.recipe.units import make_units, units_stage, with_units

log = logging.getLogger("train")


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--stage", type=int, required=True, choices=(5, 6, 8, 9))
    args = parser.parse_args()
    recipe = recipe_from(args)
    asked = recipe.experiments()
    for teacher in (each for each in asked if not each.trained and args.stage == 6):
        log.info("stage 6: %s (%s) is taken over as it is: nothing to train", teacher.name, teacher.pretrained)
    if args.stage == 5 and launch.rank() == 0:
        for experiment in asked:
            if stage := first_weights_stage(recipe, experiment):
                work = partial(write_first_weights, recipe, experiment)
                run_stage(stage, work, job=recipe.job, wait=bool(recipe.launcher))  # by every machine of a launcher
    experiments = [experiment for experiment in asked if experiment.stage == args.stage and experiment.trained]
    if relaunched(recipe, (stage for experiment in experiments for stage in stages_of(recipe, experiment))):
        return
    ranks, recipe = join(recipe, longest_wait=None)
    for experiment in experiments:
        experiment = with_units(recipe, experiment)  # not before: its teacher may be one of those above
        if stage := units_stage(recipe, experiment):
            run_stage(stage, partial(make_units, recipe, ranks, experiment), ranks, recipe.job)
        if recipe.job is None:
            run_stage(training_stage(recipe, experiment), partial(train, recipe, experiment), ranks)


def stages_of(recipe: Recipe, experiment: Experiment) -> list[Stage]:
    """The stages of an experiment: its units of frames, if it needs some, and its training, which has no jobs."""
    experiment = with_units(recipe, experiment, quiet=True)
    training = None if recipe.job else training_stage(recipe, experiment)
    return [stage for stage in (units_stage(recipe, experiment), training) if stage]


if __name__ == "__main__":
    run_script(main)
