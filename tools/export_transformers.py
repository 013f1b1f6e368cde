"""Write an experiment's model as a folder that transformers loads without this project.

    export_transformers.py --exp-dir egs/librispeech/exp/wav2vec2 --out FOLDER [--kind hubert]

A Wav2Vec2ForCTC or HubertForCTC; after contrastive pre-training a Wav2Vec2ForPreTraining, with its quantiser.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.models import checkpoint
from distill.models.pretrained.writing import KINDS, write_folder
from distill.recipe.script import run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp-dir", type=Path, required=True, help="an experiment's folder; its last epoch is taken")
    parser.add_argument("--kind", default="wav2vec2", choices=KINDS, help="family of transformers' class")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model, experiment, outputs, epoch = checkpoint.load_recogniser(args.exp_dir)
    if experiment.transduces and not experiment.recognises:
        raise ValueError(
            f"{args.exp_dir} has a transducer alone, which transformers has no class for; give an experiment whose main"
            " output is trained, or use run.sh --stage 12, which writes it for sherpa-onnx"
        )
    write_folder(model, outputs, args.out, args.kind, checkpoint.load_epoch(args.exp_dir)["objective"])
    parts = {"transducer": experiment.transduces, "second, CTC output": model.ctc is not None}
    missing = [part for part, there in parts.items() if there]
    left_out = f"; its {' and '.join(missing)} is left out, as transformers has no class with it" if missing else ""
    print(f"epoch {epoch} of {args.exp_dir} in {args.out}{left_out}")


if __name__ == "__main__":
    run_script(main)
