"""Speed of HuBERT base at a half and a quarter of its parameters, on one thread, in one run: measured and predicted.

    python -m benchmarks.pruned [--seconds 15] [--rounds 5] [--json FILE]

Fewer heads and channels by settings, what L0 gates of a random order leave (slimmed) of the parameters or of the
multiply-adds, and low-rank factors; whole utterances in torch and ONNX Runtime, fp32 and int8. Weights are random. All
take turns, as in `benchmarks.rtf`; a ratio is of the dense model's time in the same engine and round. Predicted is
`distill.models.cost.predict_rtf`, of torch; it and the multiply-adds are of 15 s, whatever is measured.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.models import CONF, OUTPUTS, take_turns, ways_of
from benchmarks.table import Row as Figures
from benchmarks.table import above_zero, finish, parser
from distill.config.experiment import Experiment
from distill.config.model import SAMPLE_RATE
from distill.models.cost import predict_rtf
from distill.models.pruning import slimmed
from distill.models.recogniser import Recogniser, build_model, count_parameters
from distill.recipe.script import run_script

MODELS: dict[str, tuple[str, tuple[str, ...], float]] = {  # experiment, other settings, share that gates close
    "dense": ("teacher_hubert", (), 0.0),
    "half": ("half", (), 0.0),
    "L0, a half": ("l0", (), 0.5),
    "L0, a quarter": ("l0", (), 0.75),
    "L0, a half of the macs": ("l0", ("model.pruning.of=macs",), 0.5),
    "low rank, a half": ("lrf", (), 0.0),
    "low rank, a quarter": ("lrf", ("model.encoder.rank=85",), 0.0),
}
FASTER = 1.6  # than dense, at half of the parameters


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=above_zero(float), default=15.0, help="length of the utterance")
    options.add_argument("--rounds", type=above_zero(int), default=5)
    args = options.parse_args()
    torch.set_num_threads(1)
    audio = (0.1 * np.random.default_rng(0).standard_normal(int(args.seconds * SAMPLE_RATE))).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        models = {name: made(*shape) for name, shape in MODELS.items()}
        rows = {name: ways_of(model, name, Path(folder) / name, len(audio)) for name, model in models.items()}
        take_turns([row for each in rows.values() for row in each], audio, args.rounds)
    found = [
        {
            "model": name, "engine": row.engine, "params_m": count_parameters(models[name])["trunk"] / 1e6,
            "macs_per_second": row.macs, "rtf": statistics.median(row.times) / args.seconds,
            "predicted_rtf": predicted(models[name]) if row.engine == "torch" else None,
            "ratio": statistics.median(theirs / ours for theirs, ours in zip(dense.times, row.times)),
        }
        for name, each in rows.items() for row, dense in zip(each, rows["dense"])
    ]  # fmt: skip
    finish(found, args.json, goals=goals, seconds_of_audio=args.seconds)


def predicted(model: Recogniser) -> float:
    return predict_rtf(model.settings, len(OUTPUTS))["total"]


def made(name: str, changes: Sequence[str], closed: float) -> Recogniser:
    """The model of an experiment with other settings, random weights; without a share that gates close at random."""
    torch.manual_seed(0)
    model = build_model(Experiment.load(CONF / f"{name}.yaml", changes).model, len(OUTPUTS)).eval()
    if not closed:
        return model
    with torch.no_grad():
        for parameter in model.gates.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.gates.settle(closed)
    return slimmed(model).eval()


def goals(rows: Sequence[Figures]) -> Iterator[dict]:
    """The goal of papers/002's pruning, for each engine."""
    for row in rows:
        if row["model"].startswith("L0, a half"):
            got = {"got": f"{row['ratio']:.2f} x", "met": row["ratio"] >= FASTER}
            yield {"goal": f"{row['model']}, {row['engine']}: {FASTER} x faster than dense", **got}


if __name__ == "__main__":
    run_script(main)
