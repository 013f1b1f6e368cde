"""Log-probabilities of a cut set from a trained model, in one of its modes: the input of every decoding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distill.config.experiment import Experiment
from distill.recipe.options import Recipe
from distill.recipe.provenance import commit
from distill.recipe.stage import Stage, run_stage

if TYPE_CHECKING:
    import numpy as np

    from distill.data.loader import SpeechDataset
    from distill.decode.transducer import Network
    from distill.models.recogniser import Recogniser


class Run(NamedTuple):
    """A model over a cut set: mode is offline, streaming or streaming-N; runtime is torch, onnx or int8.

    condition: one of the experiment's `decoding.conditions`; empty: the audio as it is. output: main or transducer.
    """

    experiment: Experiment
    cut_set: str
    mode: str
    runtime: str = "torch"
    condition: str = ""
    output: str = "main"

    @property
    def label(self) -> str:
        """The mode as results name it."""
        return self.mode if self.runtime == "torch" else f"{self.mode}-{self.runtime}"


@dataclass(frozen=True, eq=False)
class Emissions:
    """A model's outputs for a cut set, and the facts that decoding and scoring need.

    scores: cut id -> log-probabilities (T, V) float32, of a transducer the encoder's projection (T, J). references: cut
    id -> words. cuts: cut id -> lhotse cut. frame_seconds: duration of a frame. chunk_frames: frames that arrive at
    once, 0 for whole utterances. units: names of the V outputs. info: fields of wer.json that describe the model and
    the mode. reading: cuts to the audio that was recognised. network: predictor and joiner, for a transducer's frames.
    """

    scores: Mapping[str, np.ndarray]
    references: Mapping[str, list[str]]
    cuts: Mapping[str, Any]
    frame_seconds: float
    chunk_frames: int
    units: Sequence[str]
    info: Mapping[str, Any]
    reading: SpeechDataset
    network: Network | None = None


def modes(experiment: Experiment) -> list[str]:
    """offline; streaming at the model's chunk; streaming-N for each N in `decoding.chunks`, in frames."""
    if not experiment.model.streaming.chunk_frames:
        return ["offline"]
    offline = ["offline"] if experiment.decoding.offline else []
    return [*offline, "streaming", *(f"streaming-{chunk}" for chunk in experiment.decoding.chunks)]


def main_mode(experiment: Experiment) -> str:
    """The mode that represents the model, and in which rescoring weights are chosen: streaming where it streams."""
    return "streaming" if experiment.model.streaming.chunk_frames else "offline"


def test_sets(recipe: Recipe) -> list[str]:
    """Names of the test sets that stage 0 made."""
    names = sorted(path.name.removesuffix(".jsonl.gz") for path in recipe.cuts.glob("test-*.jsonl.gz"))
    if not names:
        raise FileNotFoundError(f"no test-* cut set in {recipe.cuts}; stage 0 makes them (run.sh --stage 0)")
    return names


def compute(recipe: Recipe, run: Run) -> Emissions:
    """Run the model; log-probabilities of the main mode and output are stored, as stages 10 and 11 both read them."""
    import torch
    from tqdm import tqdm

    from distill.batch import SAMPLE_RATE
    from distill.data.audio import read_audio
    from distill.data.distortions import Distorter
    from distill.data.loader import SpeechDataset
    from distill.data.numerators import text_of
    from distill.decode import log_probs
    from distill.models.checkpoint import load_recogniser
    from distill.models.latency import latency
    from distill.runtime.open import open_session
    from distill.runtime.torch_runner import network_of

    torch.set_num_threads(recipe.threads)
    experiment, cuts = run.experiment, cut_set(recipe.cuts, run.cut_set)
    chosen = experiment.decoding
    model, trained, units, epoch = load_recogniser(recipe.exp(experiment.name), chosen.epoch, chosen.avg)
    streaming, _, other_chunk = run.mode.partition("-")
    if other_chunk:
        model = model.set_chunk(int(other_chunk), trained.model.streaming.history_frames)
    distorter = Distorter(chosen.conditions[run.condition], recipe.data_dir) if run.condition else None
    reading = SpeechDataset(None, None, 0, False, False, distorter=distorter)
    if run.runtime == "torch":
        session, pairs = None, _log_probs(recipe, run, model.to(recipe.device).select_output(run.output), reading)
    else:
        session = open_session(recipe.exp(experiment.name), run.runtime, run.mode, run.output)
        pairs = ((cut.id, session.whole(read_audio(cut))) for cut in cuts)
    title = " ".join(filter(None, (experiment.name, run.cut_set, run.condition, run.mode)))
    pairs = tqdm(pairs, desc=title, total=len(cuts), disable=None)
    if run.runtime == "torch" and run.output == "main" and run.mode == main_mode(experiment) and not run.condition:
        stored = _log_probs_stage(recipe, run)
        run_stage(stored, lambda folder: log_probs.write(folder, dict(pairs)), job=recipe.job)
        scores = log_probs.read(stored.out)
    else:
        scores = dict(pairs)
    delay, settings = latency(model.settings), model.settings
    info = {
        "experiment": experiment.name, "corpus": recipe.corpus, "lm": None, "mode": run.label,
        "chunk_ms": delay.chunk_ms, "lookahead_mean_ms": delay.mean, "lookahead_max_ms": delay.max,
        "epoch": epoch, "avg": chosen.avg, "seed": trained.seed, "commit": commit(),
    }  # fmt: skip
    if run.condition:
        info["condition"] = run.condition
    return Emissions(
        scores, {cut.id: (text_of(cut) or "").split() for cut in cuts}, {cut.id: cut for cut in cuts},
        settings.front_end.hop / SAMPLE_RATE, settings.streaming.chunk_frames if streaming == "streaming" else 0,
        units, info, reading, session.runner.network if session else network_of(model),
    )  # fmt: skip


def _log_probs(recipe: Recipe, run: Run, model: Recogniser, reading: SpeechDataset) -> Iterator[tuple[str, np.ndarray]]:
    """Pairs of cut id and log-probabilities (T, V), from torch."""
    from distill.data.loader import in_order
    from distill.decode import log_probs

    batches = in_order(cut_set(recipe.cuts, run.cut_set), reading, 4 * run.experiment.data.max_duration)
    batches = (batch.to(recipe.device) for batch in batches)
    if run.mode == "offline":
        return log_probs.offline(model, batches)
    settings = model.settings
    return log_probs.streaming(model, batches, settings.streaming.chunk_frames * settings.front_end.hop)


def _log_probs_stage(recipe: Recipe, run: Run) -> Stage:
    """The stage that stores log-probabilities of a cut set; running the model takes half of the decoding time."""
    folder = recipe.exp(run.experiment.name)
    inputs = {folder: run.experiment.stage, recipe.cut_set(run.cut_set): 0}
    out = folder / f"log_probs_{run.cut_set}_{run.mode}"
    chosen = {key: value for key, value in run.experiment.decoding.identity().items() if key in ("avg", "epoch")}
    return Stage(10, out, chosen, inputs)


@cache
def cut_set(folder: Path, name: str) -> Any:
    """A cut set, read once per process."""
    from distill.corpora.cut_sets import load_cuts

    return load_cuts(folder, [name])
