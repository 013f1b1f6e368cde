"""Stage 12: every experiment as ONNX, fp32 and int8, with the files that runtimes need; speed, memory and latency."""

from __future__ import annotations

import logging
from functools import partial

from distill.recipe.exporting import export, export_stage
from distill.recipe.options import recipe_from, recipe_parser
from distill.recipe.script import run_script
from distill.recipe.stage import run_stage

log = logging.getLogger("export")


def main() -> None:
    recipe = recipe_from(recipe_parser(__doc__).parse_args())
    for experiment in recipe.recognisers(12):
        if obstacle := experiment.model.runtime_obstacle:
            log.warning("%s is not exported: %s; torch runs its checkpoint", experiment.name, obstacle)
            continue
        run_stage(export_stage(recipe, experiment), partial(export, recipe, experiment))


if __name__ == "__main__":
    run_script(main)
