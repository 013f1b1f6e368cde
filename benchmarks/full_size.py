"""Stages 5 to 9 at full size for a few updates: time and peak memory of each.

    python -m benchmarks.full_size [--paper 001] [--pretrained FOLDER] [--updates 2] [--seconds 12] [--json FILE]

Of papers/001 T1 (317 M), S5 and its SS; of papers/000 HuBERT base (94 M), its deep and thin student with codewords, and
that one's fine-tuning; of DPHuBERT (--paper dphubert) its two stages. Without --pretrained, teachers start from random
twins of facebook/wav2vec2-large-lv60 and facebook/hubert-base-ls960, which transformers writes in the layout that is
published; audio and graphs are a rehearsal's. Needs 12 GiB of memory and 12 GiB of disk (--dir).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.recipe import RECIPE, ROOT, STAGES, flags
from benchmarks.table import Row, above_zero, finish, parser
from distill.recipe.script import run_script


class Paper(NamedTuple):
    """What is run: experiments, the stages with their titles, and what writes the teacher's random twin."""

    experiments: str
    cases: Mapping[int, str]
    twin: Callable[[Path], Path]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--paper", choices=PAPERS, default="001")
    options.add_argument("--pretrained", type=Path, help="folder of the published checkpoint")
    options.add_argument("--updates", type=int, default=2)
    options.add_argument("--seconds", type=above_zero(float), default=12, help="of audio per update")
    options.add_argument("--device", default="cpu")
    options.add_argument("--dir", type=Path, help="where data and models are written; default: a temporary folder")
    args = options.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        finish(measured(args, Path(folder)), args.json)


def measured(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    paper = PAPERS[args.paper]
    pretrained = args.pretrained or paper.twin(folder / "twin")
    data, exp = folder / "data", folder / "exp"
    prepare = ("--rehearse", "true", "--stop-stage", "4", "--data-dir", data, "--exp-dir", exp)
    subprocess.run([RECIPE / "run.sh", *map(str, prepare)], check=True)
    settings = {
        "pretrained": pretrained, "optim.updates": args.updates, "optim.epochs": 0, "optim.accumulate": 1,
        "data.max_duration": args.seconds, "data.valid_utterances": 2, "data.workers": 0,
        "frozen.encoder": 0,  # all that is trained later is trained now
        "data.train": "[labelled,unlabelled]",  # a teacher of so few updates may find no words in unlabelled audio
    }  # fmt: skip
    if args.device == "cpu":  # few processors compute in bfloat16
        settings["optim.precision"] = "float32"
    options = {
        "conf-dir": RECIPE / "conf", "data-dir": data, "exp-dir": exp, "nj": 1,
        "experiment": paper.experiments, "device": args.device,
    }  # fmt: skip
    for stage, case in paper.cases.items():
        script, *more = STAGES[stage]
        seconds, memory = run([sys.executable, str(ROOT / "local" / script), *flags(options, settings), *more])
        yield {"case": f"{stage}: {case}", "seconds": seconds, "peak_gb": memory}
    for name in paper.experiments.split(","):
        result = json.loads((exp / name / "result.json").read_text(encoding="utf-8"))
        print(f"{name}: {result['params']}, validation loss {result['valid_loss']}")


def run(command: list[str]) -> tuple[float, float]:
    """Seconds of a command and its peak memory in GB; ends the script with its status where it fails."""
    begun, process = time.monotonic(), subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(os.waitstatus_to_exitcode(status))
    return time.monotonic() - begun, usage.ru_maxrss * 1024 / 1e9


def wav2vec2_large(folder: Path) -> Path:
    """A random Wav2Vec2ForPreTraining of the published shape, with its feature extractor."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining

    config = Wav2Vec2Config(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, conv_bias=True,
        feat_extract_norm="layer", do_stable_layer_norm=True, codevector_dim=768, proj_codevector_dim=768,
    )  # fmt: skip
    Wav2Vec2ForPreTraining(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return folder


def hubert_base(folder: Path) -> Path:
    """A random HubertModel of the published shape, with its feature extractor."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    HubertModel(HubertConfig()).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False).save_pretrained(folder)
    return folder


PAPERS = {
    "001": Paper(
        "teacher,s5,s5_stream",
        {5: "T1's first weights", 6: "T1", 7: "lattices", 8: "T1 -> S5", 9: "S5 -> SS"},
        wav2vec2_large,
    ),
    "000": Paper(
        "hubert,dt_disc,dt_disc_ft",
        {5: "HuBERT base's import", 8: "HuBERT base -> D&T, codewords", 9: "D&T, fine-tuned"},
        hubert_base,
    ),
    "dphubert": Paper(
        "hubert,dphubert_1,dphubert_2",
        {5: "HuBERT base's import", 8: "HuBERT base -> DPHuBERT, pruned, and slimmed"},
        hubert_base,
    ),
}

if __name__ == "__main__":
    run_script(main)
