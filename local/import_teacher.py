"""A wav2vec 2.0, HuBERT or WavLM checkpoint as an experiment folder: epoch-0.pt, model.yaml, import.tsv.

    import_teacher.py --from hf:FOLDER_OR_NAME  --lang data/lang_phones --out exp/teacher_init
    import_teacher.py --from fairseq:FILE.pt    --lang data/lang_chars  --out exp/teacher_init
    import_teacher.py --from torchaudio:FILE.pt --out exp/my_ctc_model      # a fine-tuned one keeps its own units

Stage 5 does this where the teacher's YAML has a `pretrained`; model.yaml is what its `model` must say.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from distill.recipe.script import run_script
from distill.recipe.stage import Stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", required=True, help="hf:FOLDER_OR_NAME, fairseq:FILE, torchaudio:FILE")
    parser.add_argument("--out", type=Path, required=True, help="experiment folder to write")
    parser.add_argument("--lang", type=Path, help="lang folder whose units the model gets; none: the checkpoint's own")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S")

    from distill.graphs.lexicon import Lang
    from distill.train.import_teacher import import_folder

    outputs = Lang.load(args.lang).outputs if args.lang else None
    with Stage(5, args.out, {"from": args.source}, {}).writing() as folder:  # replaces an import, nothing else
        import_folder(args.source, outputs, folder, args.out.name)


if __name__ == "__main__":
    run_script(main)
