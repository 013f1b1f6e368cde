"""Graph search on real log-probabilities, one thread: ours whole and in chunks, kaldi-decoder, k2.

The graph is that of --graphs and --lang, and with --text and --dictionary (CMUdict's format) also one of a bigram
over the --words most frequent words of that text; its scores mean little, as the model knows other words, but its
size does. Every row of a graph has the same beam and max_active: `score` is the mean 1-best log-score of an
utterance, so that rows compare at equal scores; `states`: of the graph.

    taskset -c 0 python tools/bench_decode.py --experiment egs/librispeech/exp-mini/ss --data egs/librispeech/data-mini
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_measure import measure

from distill.batch import SAMPLE_RATE
from distill.decode.lattice import GraphDecoder
from distill.fsa import NativeEngine, Search
from distill.fsa.search import OngoingSearch, _openfst
from distill.graphs.lexicon import Lang, Lexicon, write_lang

BEAMS = ((15.0, 2000), (12.0, 1000))  # and max_active
MISSING = -20.0  # log-probability of outputs that the model does not have
CHUNK = 16


@dataclass(frozen=True)
class Case:
    """A graph with what is searched: log_probs (T, V) each; seconds of audio in all."""

    name: str
    decoder: GraphDecoder
    log_probs: list[np.ndarray]
    seconds: float
    hlg: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, required=True, help="folder of a trained model")
    parser.add_argument("--data", type=Path, required=True, help="data folder of its recipe")
    parser.add_argument("--set", default="dev", help="cut set")
    parser.add_argument("--utterances", type=int, default=40)
    parser.add_argument("--text", type=Path, help="text of the larger graph: UTTERANCE WORDS…, as LibriSpeech's")
    parser.add_argument("--dictionary", type=Path, help="its pronunciations, as CMUdict has them")
    parser.add_argument("--words", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--k2-python", type=Path, help="Python of an environment with k2, for its rows")
    parser.add_argument("--json", type=Path, help="write the table here")
    args = parser.parse_args()
    if (args.text is None) != (args.dictionary is None):
        parser.error("--text and --dictionary belong together")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(args, Path(folder)):
            for beam, most in BEAMS:
                rows += measured(case, Search(beam, 6.0, most), args, Path(folder))
    show(rows)
    if args.json:
        from distill.train.monitor import hardware

        content = {"hardware": hardware(torch.device("cpu")), "rows": rows}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def cases(args: argparse.Namespace, folder: Path) -> list[Case]:
    """The recipe's graph, and the larger one."""
    log_probs, hop = heard(args)
    seconds = sum(map(len, log_probs)) * hop / SAMPLE_RATE
    lang = Lang.load(args.data / "lang_phones")
    hlg = args.data / "graphs/HLG.fst"
    found = [Case("recipe", GraphDecoder(NativeEngine(), hlg, lang), log_probs, seconds, hlg)]
    if args.text:
        larger, hlg = large_graph(args, folder)
        frames = [as_outputs(each, lang, larger) for each in log_probs]
        decoder = GraphDecoder(NativeEngine(), hlg, larger)
        found.append(Case(f"{args.words} words, bigram", decoder, frames, seconds, hlg))
    return found


def heard(args: argparse.Namespace) -> tuple[list[np.ndarray], int]:
    """Log-probabilities of the first utterances, and the samples of a frame."""
    from distill.data.loader import SpeechDataset, in_order, load_cuts
    from distill.decode import log_probs
    from distill.models.checkpoint import load_recogniser

    model, *_ = load_recogniser(args.experiment, avg=1)
    cuts = load_cuts(args.data / "cuts", [args.set]).subset(first=args.utterances)
    batches = in_order(cuts, SpeechDataset(None, None, 0, False, False), 200)
    return [each for _, each in log_probs.offline(model, batches)], model.settings.front_end.hop


def large_graph(args: argparse.Namespace, folder: Path) -> tuple[Lang, Path]:
    """A lang folder and HLG of the text's most frequent words that have a pronunciation."""
    from distill.graphs.decoding_graph import build_hlg
    from distill.graphs.word_ngram import train_word_ngram

    known: dict[str, list[str]] = {}
    for line in args.dictionary.read_text(encoding="utf-8", errors="replace").splitlines():
        word, _, phones = line.partition("#")[0].partition(" ")
        known.setdefault(re.sub(r"\(\d+\)$", "", word).upper(), []).append(re.sub(r"\d", "", phones).strip())
    lines = [line.split()[1:] for line in args.text.read_text(encoding="utf-8").splitlines()]
    counts = Counter(word for line in lines for word in line if word in known)
    words = sorted(word for word, _ in counts.most_common(args.words))
    lexicon = (f"{word} {phones}\n" for word in words for phones in dict.fromkeys(known[word]))
    (folder / "lexicon.txt").write_text("".join(lexicon), encoding="utf-8")
    write_lang(Lexicon.read(folder / "lexicon.txt"), folder)
    lang, chosen = Lang.load(folder), set(words)
    sentences = (" ".join(word for word in line if word in chosen) for line in lines)
    train_word_ngram(sentences, 2, words, least=1).write(folder / "lm.arpa")
    build_hlg(lang, folder / "lm.arpa").write(str(folder / "HLG.fst"))
    return lang, folder / "HLG.fst"


def as_outputs(log_probs: np.ndarray, model: Lang, graph: Lang) -> np.ndarray:
    """(T, V of the model) -> (T, V of the graph), columns by the units' names."""
    place = {unit: column for column, unit in enumerate(model.units)}
    padded = np.concatenate([log_probs, np.full((len(log_probs), 1), MISSING, np.float32)], axis=1)
    return np.ascontiguousarray(padded[:, [place.get(unit, -1) for unit in graph.units]])


def measured(case: Case, search: Search, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Rows of all engines at one beam; ratios are to ours over whole utterances."""
    decoder = case.decoder.searching(search)
    frames = [decoder.frames(each) for each in case.log_probs]
    narrow = decoder.searching(Search(search.beam, 0.1, search.max_active))
    runs: dict[str, Callable[[], list[float]]] = {
        "ours": lambda: ours(decoder, case.log_probs),
        "ours, 1-best only": lambda: ours(narrow, case.log_probs),
        f"ours, chunks of {CHUNK} and partials": lambda: in_chunks(decoder, frames),
        "kaldi-decoder": kaldi(decoder, frames),
    }
    rows = []
    for engine, run in runs.items():
        figures = measure(run, args.repeats)
        rows.append(row(case, search, engine, figures["cpu_seconds"], float(np.mean(run()))))
    if args.k2_python:
        rows.append(of_k2(case, search, args, folder))
    for each in rows:
        each["ratio"] = round(each["seconds"] / rows[0]["seconds"], 2)
    return rows


def row(case: Case, search: Search, engine: str, seconds: float, score: float) -> dict[str, Any]:
    return {
        "case": f"{case.name}, beam {search.beam:g}, {search.max_active} active", "engine": engine,
        "seconds": round(seconds, 4), "per_audio_second": round(seconds / case.seconds, 6), "score": round(score, 3),
        "states": case.decoder.graph.num_states, "arcs": len(case.decoder.graph.label),
    }  # fmt: skip


def ours(decoder: GraphDecoder, log_probs: list[np.ndarray]) -> list[float]:
    return [decoder.best(lattice).score for lattice in decoder.lattices(log_probs)]


def in_chunks(decoder: GraphDecoder, frames: list[np.ndarray]) -> list[float]:
    scores = []
    for each in frames:
        search = OngoingSearch(decoder.graph, decoder.search)
        for start in range(0, len(each), CHUNK):
            search.feed(each[start : start + CHUNK])
            search.best()
        scores.append(decoder.best(search.lattice(True)).score)
    return scores


def kaldi(decoder: GraphDecoder, frames: list[np.ndarray]) -> Callable[[], list[float]]:
    """FasterDecoder: one best path, no lattice."""
    import kaldi_decoder

    fst = _openfst(decoder.graph)
    options = kaldi_decoder.FasterDecoderOptions(beam=decoder.search.beam, max_active=decoder.search.max_active)

    def run() -> list[float]:
        import kaldifst

        scores = []
        for each in frames:
            found = kaldi_decoder.FasterDecoder(fst, options)
            found.decode(kaldi_decoder.DecodableCtc(each))
            _, path = found.get_best_path(use_final_probs=found.reached_final())
            cost = kaldifst.get_linear_symbol_sequence(path)[3]
            scores.append(-float(cost.value1 + cost.value2))
        return scores

    return run


def of_k2(case: Case, search: Search, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """k2's intersect_dense_pruned, run by another Python."""
    path = folder / "case.pt"
    lengths = torch.tensor([len(each) for each in case.log_probs])
    frames = [torch.from_numpy(case.decoder.frames(each)) for each in case.log_probs]
    padded = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True)
    graph = case.decoder.graph
    arrays = {
        name: torch.from_numpy(getattr(graph, name)) for name in ("first", "dst", "label", "word", "score", "final")
    }
    torch.save({"log_probs": padded, "lengths": lengths, "graph": arrays}, path)
    command = [args.k2_python, Path(__file__).with_name("bench_decode_k2.py"), path, "--repeats", str(args.repeats)]
    command += ["--beam", str(search.beam), "--max-active", str(search.max_active)]
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"k2's row failed: {done.stderr[-2000:]}")
    figures = json.loads(done.stdout.splitlines()[-1])
    return row(case, search, "k2", figures["cpu_seconds"], figures["score"])


def show(rows: list[dict[str, Any]]) -> None:
    for each in rows:
        print(
            f"{each['case']:42} {each['engine']:32} {each['per_audio_second']:9.5f} s per s of audio"
            f" {each['ratio']:7.2f}  score {each['score']:.2f}"
        )


if __name__ == "__main__":
    main()
