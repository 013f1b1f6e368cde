"""Part of stages 7, 10 and 11: what a trained model gives for a cut set, in one of its modes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from distill.config.experiment import Experiment
from distill.recipe.options import Recipe
from distill.recipe.stage import Stage, run_stage


def modes(experiment: Experiment) -> list[str]:
    """offline; streaming at the model's chunk; streaming-N at chunks of N frames that `decoding.chunks` asks for."""
    if not experiment.model.streaming.chunk_frames:
        return ["offline"]
    return ["offline", "streaming", *(f"streaming-{chunk}" for chunk in experiment.decoding.chunks)]


def main_mode(experiment: Experiment) -> str:
    """The mode whose rates stand for the model, and in which weights are chosen: streaming, where it streams."""
    return "streaming" if "streaming" in modes(experiment) else "offline"


def exported_modes(experiment: Experiment) -> list[str]:
    """How stage 12's graphs run: in chunks where the model streams."""
    return ["streaming" if experiment.model.streaming.chunk_frames else "offline"]


def test_sets(recipe: Recipe) -> list[str]:
    """Names of the test sets that stage 0 made."""
    found = sorted(path.name.removesuffix(".jsonl.gz") for path in recipe.cuts.glob("test-*.jsonl.gz"))
    if not found:
        raise FileNotFoundError(f"no test-* cut set in {recipe.cuts}; stage 0 makes them (run.sh --stage 0)")
    return found


def run_model(recipe: Recipe, experiment: Experiment, test_set: str, mode: str, runtime: str = "torch") -> dict:
    """Log-probabilities (T, V), reference words and cuts by cut id, and the model's facts.

    The log-probabilities of the main mode are kept (`kept_stage`): stages 10 and 11 need them.
    """
    import torch
    from tqdm import tqdm

    from distill.batch import SAMPLE_RATE
    from distill.data.loader import SpeechDataset, in_order
    from distill.data.numerators import text_of
    from distill.decode import log_probs
    from distill.models.checkpoint import load_recogniser
    from distill.models.latency import latency
    from distill.recipe.provenance import commit

    torch.set_num_threads(recipe.threads)
    model, trained, units, epoch = load_recogniser(recipe.exp(experiment.name), avg=experiment.decoding.avg)
    cuts = cut_set(recipe.cuts, test_set)
    batches = in_order(cuts, SpeechDataset(None, None, 0, False, False), 4 * experiment.data.max_duration)
    batches = (batch.to(recipe.device) for batch in batches)
    model = model.to(recipe.device)
    streaming, _, other_chunk = mode.partition("-")
    if other_chunk:
        model = model.run_at(int(other_chunk), trained.model.streaming.history_frames)
    if runtime != "torch":
        pairs = over_sessions(recipe.exp(experiment.name), cuts, mode, runtime)
    elif streaming == "streaming":
        step = model.settings.streaming.chunk_frames * model.settings.front_end.hop
        pairs = log_probs.streaming(model, batches, step)
    else:
        pairs = log_probs.offline(model, batches)
    delay = latency(model.settings)
    facts = {
        "experiment": experiment.name, "corpus": recipe.corpus, "lm": None,
        "mode": mode if runtime == "torch" else f"{mode}-{runtime}",
        "chunk_ms": delay.chunk, "lookahead_mean_ms": delay.mean, "lookahead_max_ms": delay.max,
        "epoch": epoch, "avg": experiment.decoding.avg, "seed": trained.seed, "commit": commit(),
    }  # fmt: skip
    pairs = tqdm(pairs, desc=f"{experiment.name} {test_set} {mode}", total=len(cuts), disable=None)
    if runtime == "torch" and mode == main_mode(experiment):
        kept = kept_stage(recipe, experiment, test_set)
        run_stage(kept, lambda folder: log_probs.write(folder, dict(pairs)))
        scores = log_probs.read(kept.out)
    else:
        scores = dict(pairs)
    references = {cut.id: (text_of(cut) or "").split() for cut in cuts}
    by_id = {cut.id: cut for cut in cuts}
    return {
        "scores": scores, "references": references, "facts": facts, "units": units, "cuts": by_id,
        "frame": model.settings.front_end.hop / SAMPLE_RATE,
        "chunk": model.settings.streaming.chunk_frames if streaming == "streaming" else 0,
    }  # fmt: skip


def kept_stage(recipe: Recipe, experiment: Experiment, test_set: str) -> Stage:
    """The stage that writes the main mode's log-probabilities of a cut set: half of what decoding it takes."""
    folder = recipe.exp(experiment.name)
    needed = {folder: experiment.stage, recipe.cuts / f"{test_set}.jsonl.gz": 0}
    out = folder / f"log_probs_{test_set}_{main_mode(experiment)}"
    return Stage(10, out, {"avg": experiment.decoding.avg}, needed)


@cache
def cut_set(folder: Path, name: str) -> Any:
    """A cut set, read once by each process."""
    from distill.data.loader import load_cuts

    return load_cuts(folder, [name])


def over_sessions(folder: Path, cuts: Iterable, mode: str, runtime: str) -> Iterator[tuple]:
    """Pairs of cut id and log-probabilities (T, V) from what stage 12 exported."""
    from distill.runtime.session import open_session

    session = open_session(folder, runtime, mode)
    for cut in cuts:
        yield cut.id, session.whole(cut.load_audio()[0])
