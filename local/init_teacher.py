"""Any wav2vec 2.0, HuBERT, WavLM or Whisper checkpoint as an experiment folder: epoch-0.pt, model.yaml, import.tsv.

    init_teacher.py --from hf:NAME_OR_FOLDER  --lang data/lang_phones --out exp/teacher_init
    init_teacher.py --from fairseq:FILE.pt    --lang data/lang_chars  --out exp/teacher_init
    init_teacher.py --from torchaudio:FILE.pt --out exp/my_ctc_model      # a fine-tuned one keeps its own units

model.yaml is the `model` section of an experiment with these weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.recipe.first_weights import import_checkpoint
from distill.recipe.script import log_to_console, run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--from", dest="source", required=True, help="hf:NAME, hf:FOLDER, fairseq:FILE, torchaudio:FILE, whisper:FOLDER"
    )
    parser.add_argument("--out", type=Path, required=True, help="experiment folder to write")
    parser.add_argument("--lang", type=Path, help="lang folder whose units the model gets; none: the checkpoint's own")
    args = parser.parse_args()
    log_to_console()
    import_checkpoint(args.source, args.lang, args.out)


if __name__ == "__main__":
    run_script(main)
