"""Stage 11: train the Transformer LM, and rescore the n-best lists of every experiment with it."""

from __future__ import annotations

from functools import partial

from distill.recipe import parallel, rescoring
from distill.recipe.emissions import test_sets
from distill.recipe.options import recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import relaunched, run_stage

TRAIN_ONLY = "--train-only"


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument(TRAIN_ONLY, action="store_true", help="leave the rest to the process that started this one")
    args = parser.parse_args()
    recipe = recipe_from(args)
    settings, experiments = recipe.lm_settings(), recipe.recognisers(11)
    training, measured = (make(recipe, settings) for make in (rescoring.training_stage, rescoring.perplexity_stage))
    pairs = [(experiment, test_set) for test_set in test_sets(recipe) for experiment in experiments]
    choices = [(each, [rescoring.weights_stage(recipe, settings, each)]) for each in experiments]
    rescorings = [(pair, [rescoring.rescoring_stage(recipe, settings, *pair)]) for pair in pairs]
    if recipe.launcher:
        if relaunched(recipe, [training, measured, *parallel.stages_of(choices, rescorings)]):
            return
    else:
        relaunched(recipe, [training], (TRAIN_ONLY,))  # the rest is done here, by processes that share no work
    ranks, recipe = parallel.join(recipe)
    run_stage(training, partial(rescoring.train, recipe, settings), ranks)
    if args.train_only:
        return
    run_stage(measured, lambda out: rescoring.measure_perplexity(recipe, settings, out) if ranks.first else None, ranks)
    phases = (rescoring.choose_weights, choices), (rescoring.rescore, rescorings)
    work = ((partial(function, settings=settings), parallel.unfinished(items)) for function, items in phases)
    parallel.each(recipe, ranks, *work)


if __name__ == "__main__":
    run_script(main)
