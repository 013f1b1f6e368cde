"""Stage 5: the weights the teacher starts from: those that its `pretrained` names, or random ones.

With --from, any wav2vec 2.0, HuBERT or WavLM checkpoint as an experiment folder: epoch-0.pt, model.yaml, import.tsv.

    init_teacher.py --from hf:NAME_OR_FOLDER  --lang data/lang_phones --out exp/teacher_init
    init_teacher.py --from fairseq:FILE.pt    --lang data/lang_chars  --out exp/teacher_init
    init_teacher.py --from torchaudio:FILE.pt --out exp/my_ctc_model      # a fine-tuned one keeps its own units

model.yaml is the `model` section of an experiment with these weights.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from distill.recipe.first_weights import first_weights_stage, import_checkpoint, write_first_weights
from distill.recipe.options import recipe_from, recipe_parser
from distill.recipe.script import log_to_console, run_script
from distill.recipe.stage import run_stage


def main() -> None:
    if "--from" in sys.argv:
        import_one()
        return
    recipe = recipe_from(recipe_parser(__doc__).parse_args())
    for experiment in recipe.experiments():
        if stage := first_weights_stage(recipe, experiment):
            run_stage(stage, partial(write_first_weights, recipe, experiment), job=recipe.job)


def import_one() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--from", dest="source", required=True, help="hf:NAME, hf:FOLDER, fairseq:FILE, torchaudio:FILE"
    )
    parser.add_argument("--out", type=Path, required=True, help="experiment folder to write")
    parser.add_argument("--lang", type=Path, help="lang folder whose units the model gets; none: the checkpoint's own")
    args = parser.parse_args()
    log_to_console()
    import_checkpoint(args.source, args.lang, args.out)


if __name__ == "__main__":
    run_script(main)
