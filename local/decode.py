"""Stage 10: decode every experiment on every test set: over HLG (1best), and without words (greedy).

With --runtime onnx or int8 the model that stage 12 exported runs, over HLG only: modes such as streaming-int8.
"""

from __future__ import annotations

from distill.config.job import takes
from distill.config.names import names_of
from distill.recipe import decoding, ngram_rescoring, parallel
from distill.recipe.emissions import test_sets
from distill.recipe.options import recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import relaunched


def main() -> None:
    parser = recipe_parser(__doc__)
    parser.add_argument("--sets", default="", help="cut sets, comma-separated; empty: all test-*")
    parser.add_argument("--runtime", default="torch", choices=("torch", "onnx", "int8"), help="what runs the model")
    args = parser.parse_args()
    recipe = recipe_from(args)
    experiments = recipe.recognisers(10)
    if args.runtime != "torch":
        decoding.check_exports(recipe, experiments)
    decoding.check_condition_sets(experiments, known := test_sets(recipe))
    runs = decoding.runs(experiments, names_of("--sets", args.sets) or known, args.runtime)
    runs = [run for number, run in enumerate(runs) if takes(recipe.job, number)]
    mine = [each for each in experiments if any(run.experiment is each for run in runs)]  # jobs wait for their weights
    rescored = [each for each in mine if {*each.decoding.methods} & {*ngram_rescoring.RESCORING}]
    tuned = rescored if args.runtime == "torch" else []
    choices = [(each, [ngram_rescoring.weights_stage(recipe, each)]) for each in tuned]
    decodings = [(run, list(decoding.stages(recipe, run).values())) for run in runs]
    if recipe.launcher and relaunched(recipe, parallel.stages_of(choices, decodings)):
        return
    ranks, recipe = parallel.join(recipe)
    phases = (ngram_rescoring.choose_weights, choices), (decoding.decode, decodings)
    parallel.each(recipe, ranks, *((work, parallel.unfinished(items)) for work, items in phases))


if __name__ == "__main__":
    run_script(main)
