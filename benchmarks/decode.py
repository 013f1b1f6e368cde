"""Graph search on real log-probabilities, one thread: ours whole and in chunks, kaldi-decoder, k2.

The graph is that of the recipe, and with --larger also that of another recipe, whose lang folder may lack units of the
model. Every row of a case has the same beam and max_active: `score` is the mean 1-best
log-score of an utterance, so that rows compare at equal scores; `wer` is that of the 1-best, in percent; `of_fp32` and
`of_int8` are its time as a share of what streaming S5 takes for the same audio in this run (random weights, which do
not change its time). The narrowest beam whose `wer` is within 1 % of the widest one's is `enough`.

    taskset -c 0 python -m benchmarks.decode --experiment egs/librispeech/exp-mini/ss --data egs/librispeech/data-mini
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import k2_figures, measure
from benchmarks.models import student
from benchmarks.table import above_zero, finish, parser
from distill.batch import SAMPLE_RATE
from distill.decode.graph_decoder import GraphDecoder
from distill.fsa.lattice import DecodingGraph, Lattice, Search
from distill.graphs.lexicon import Lang
from distill.lfmmi import NativeEngine
from distill.recipe.script import run_script
from distill.runtime.timing import run as run_session
from distill.scoring.wer import score
from distill.search.beam import OngoingSearch

BEAMS = ((20.0, 7000), (15.0, 2000), (13.0, 1000), (12.0, 1000), (10.0, 500))  # and max_active
WITHIN = 1.01  # of the widest beam's word error rate
MISSING = -20.0  # log-probability of outputs that the model does not have
CHUNK = 16
S5_SECONDS = 15.0

BestPaths = list[tuple[float, Sequence[int]]]  # of each utterance: score and word ids of the best path


@dataclass(frozen=True)
class Case:
    """A graph with its input: log_probs (T, V) and reference of each utterance; seconds of audio in all."""

    name: str
    decoder: GraphDecoder
    log_probs: list[np.ndarray]
    references: list[list[str]]
    seconds: float


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        finish(all_rows(args, Path(folder)), args.json)


def all_rows(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    s5 = s5_rows(folder)
    for case in cases(args):
        for each in with_enough([measured(case, Search(beam, 6.0, most), args) for beam, most in BEAMS]):
            yield each | {f"of_{name}": round(each["per_audio_second"] / seconds, 3) for name, seconds in s5.items()}
    for name, seconds in s5.items():
        yield {"case": "S5 streaming", "engine": f"ONNX Runtime, {name}", "per_audio_second": round(seconds, 6)}


def parse() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--experiment", type=Path, required=True, help="folder of a trained model")
    options.add_argument("--data", type=Path, required=True, help="data folder of its recipe")
    options.add_argument("--set", default="test-other", help="cut set")
    options.add_argument("--utterances", type=int, default=100)
    options.add_argument("--larger", type=Path, help="data folder of a recipe with a larger graph")
    options.add_argument("--repeats", type=above_zero(int), default=3)
    options.add_argument("--k2-python", type=Path, help="Python of an environment with k2, for its rows")
    return options.parse_args()


def s5_rows(folder: Path, rounds: int = 5) -> dict[str, float]:
    """Seconds per second of audio of streaming S5 in ONNX Runtime, by its numbers: medians."""
    audio = (0.1 * np.random.default_rng(0).standard_normal(int(S5_SECONDS * SAMPLE_RATE))).astype(np.float32)
    seconds = {}
    for row in student("s5_stream", folder / "s5", len(audio)):
        if row.case.endswith("streaming") and row.engine.startswith("onnx"):
            times = [run_session(row.session, audio, row.piece)[0] for _ in range(rounds + 1)][1:]
            seconds["int8" if row.int8 else "fp32"] = float(np.median(times)) / S5_SECONDS
    return seconds


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """The recipe's graph, and the larger one."""
    log_probs, references, hop = emissions(args)
    seconds = sum(map(len, log_probs)) * hop / SAMPLE_RATE
    model = Lang.load(args.data / "lang_phones")
    for data in filter(None, (args.data, args.larger)):
        lang = Lang.load(data / "lang_phones")
        decoder = GraphDecoder(NativeEngine(), data / "graphs/HLG.fst", lang)
        frames = [as_outputs(each, model, lang) for each in log_probs]
        yield Case(str(data), decoder, frames, references, seconds)


def emissions(args: argparse.Namespace) -> tuple[list[np.ndarray], list[list[str]], int]:
    """Log-probabilities of the first utterances, their references, and the samples of a frame."""
    from distill.corpora.cut_sets import load_cuts
    from distill.data.loader import SpeechDataset, in_order
    from distill.decode import log_probs
    from distill.models.checkpoint import load_recogniser

    model, *_ = load_recogniser(args.experiment, avg=1)
    cuts = load_cuts(args.data / "cuts", [args.set]).subset(first=args.utterances)
    batches = in_order(cuts, SpeechDataset(None, None, 0, False, False), 200)
    references = {cut.id: cut.supervisions[0].text.split() for cut in cuts}
    names, scores = zip(*log_probs.offline(model, batches))
    return list(scores), [references[name] for name in names], model.settings.front_end.hop


def as_outputs(log_probs: np.ndarray, model: Lang, graph: Lang) -> np.ndarray:
    """(T, V of the model) -> (T, V of the graph), columns by the units' names."""
    place = {unit: column for column, unit in enumerate(model.units)}
    padded = np.concatenate([log_probs, np.full((len(log_probs), 1), MISSING, np.float32)], axis=1)
    return np.ascontiguousarray(padded[:, [place.get(unit, -1) for unit in graph.units]])


def measured(case: Case, search: Search, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of all engines at one beam; ratios are to ours over whole utterances."""
    decoder, narrow = copy(case.decoder), copy(case.decoder)
    decoder.search, narrow.search = search, Search(search.beam, 0.1, search.max_active)
    frames = [decoder.frames(x) for x in case.log_probs]
    runs: dict[str, Callable[[], BestPaths]] = {
        "ours": lambda: [best_path(decoder, lattice) for lattice in decoder.lattices(case.log_probs)],
        "ours, 1-best only": lambda: [best_path(narrow, lattice) for lattice in narrow.lattices(case.log_probs)],
        f"ours, chunks of {CHUNK} and partials": lambda: in_chunks(decoder, frames),
        "kaldi-decoder": kaldi(decoder, frames),
    }
    rows = [row(case, search, engine, measure(run, args.repeats)["cpu_seconds"], run()) for engine, run in runs.items()]
    if args.k2_python:
        rows.append(of_k2(case, search, args))
    for each in rows:
        each["ratio"] = round(each["per_audio_second"] / rows[0]["per_audio_second"], 2)
    return rows


def row(case: Case, search: Search, engine: str, seconds: float, best: BestPaths) -> dict[str, Any]:
    names, counts = case.decoder.words, []
    for reference, (_, words) in zip(case.references, best):
        counts.append(score("", reference, [names[word] for word in words]).errors)
    return {
        "case": case.name, "engine": engine, "beam": search.beam, "max_active": search.max_active,
        "per_audio_second": round(seconds / case.seconds, 6), "score": round(float(np.mean([x for x, _ in best])), 3),
        "wer": round(100 * sum(counts) / sum(map(len, case.references)), 2),
        "states": case.decoder.graph.num_states, "arcs": len(case.decoder.graph.label),
    }  # fmt: skip


def with_enough(by_beam: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """All rows of a case, widest beam first; those of the narrowest beam that is wide enough are marked."""
    widest = by_beam[0][0]["wer"]
    enough = [rows for rows in by_beam if rows[0]["wer"] <= WITHIN * widest][-1]
    return [{**each, "enough": "yes" if rows is enough else ""} for rows in by_beam for each in rows]


def best_path(decoder: GraphDecoder, lattice: Lattice) -> tuple[float, Sequence[int]]:
    best = decoder.best(lattice)
    return best.score, [decoder.lang.words[word] for word in best.words]


def in_chunks(decoder: GraphDecoder, frames: list[np.ndarray]) -> BestPaths:
    best = []
    for log_probs in frames:
        search = OngoingSearch(decoder.graph, decoder.search)
        for start in range(0, len(log_probs), CHUNK):
            search.feed(log_probs[start : start + CHUNK])
            search.best()
        best.append(best_path(decoder, search.lattice(True)))
    return best


def kaldi(decoder: GraphDecoder, frames: list[np.ndarray]) -> Callable[[], BestPaths]:
    """FasterDecoder: one best path, no lattice."""
    import kaldi_decoder
    import kaldifst

    fst = decoder.graph.to_openfst()
    options = kaldi_decoder.FasterDecoderOptions(beam=decoder.search.beam, max_active=decoder.search.max_active)

    def run() -> BestPaths:
        scores = []
        for log_probs in frames:
            search = kaldi_decoder.FasterDecoder(fst, options)
            search.decode(kaldi_decoder.DecodableCtc(log_probs))
            _, path = search.get_best_path(use_final_probs=search.reached_final())
            _, _, words, cost = kaldifst.get_linear_symbol_sequence(path)
            scores.append((-float(cost.value1 + cost.value2), words))
        return scores

    return run


def of_k2(case: Case, search: Search, args: argparse.Namespace) -> dict[str, Any]:
    """k2's intersect_dense_pruned, run by another Python."""
    frames = [torch.from_numpy(case.decoder.frames(each)) for each in case.log_probs]
    figures = k2_figures(args.k2_python, {
        "log_probs": torch.nn.utils.rnn.pad_sequence(frames, batch_first=True), "repeats": args.repeats,
        "lengths": torch.tensor([len(each) for each in frames]),
        "beams": torch.tensor([search.beam, search.lattice_beam, search.max_active]),
        "graph": {x.name: torch.from_numpy(getattr(case.decoder.graph, x.name)) for x in fields(DecodingGraph)},
    }, 3600)  # fmt: skip
    if "error" in figures:
        sys.exit(f"k2's row failed: {figures['error']}")
    return row(case, search, "k2", figures["cpu_seconds"], list(zip(figures["scores"], figures["words"])))


if __name__ == "__main__":
    run_script(main)
