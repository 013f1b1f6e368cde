"""Results of an exported model in each runtime: torch, ONNX Runtime fp32 and int8, sherpa-onnx.

    python -m benchmarks.runtimes --experiment EXP/ss --sets test-digits-unseen[,…] [--data-dir DIR] [--json FILE]

Every utterance is read with half a second of silence behind it, and of a stream only whole chunks, as sherpa-onnx
decodes no others. Outputs are read over the graph (main), as the best ones of each frame (ctc) and by the beam
(transducer), where the model has them. A row has the error rate, its difference from torch with the interval of paired
draws, and in how many utterances the words, and of ctc the tokens, are torch's; sherpa-onnx, which searches a
transducer's units without a lexicon, decodes the other outputs, each utterance alone and all in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import torch

from benchmarks.table import Row, finish, parser
from distill.config.model import SAMPLE_RATE
from distill.corpora.cut_sets import load_cuts
from distill.data.audio import read_audio
from distill.data.numerators import text_of
from distill.recipe.script import run_script
from distill.runtime.info import ModelInfo
from distill.runtime.onnx_runner import file_name
from distill.runtime.open import open_session
from distill.runtime.session import Session
from distill.runtime.transcriber import WORD_START, open_search
from distill.scoring.compare import paired_bootstrap
from distill.scoring.wer import ErrorRate, score

SILENCE = np.zeros(SAMPLE_RATE // 2, np.float32)
BATCH = 16
READ = {"main": "over the graph", "ctc": "best outputs", "transducer": "by the beam"}
Found = dict[str, tuple[str, ...]]  # words or tokens by utterance


@dataclass(frozen=True)
class Model:
    """An experiment's folder, its information, and audio with its words by utterance."""

    folder: Path
    info: ModelInfo
    waves: Mapping[str, np.ndarray]
    references: Mapping[str, Sequence[str]]

    @property
    def export(self) -> Path:
        return self.folder / "export"

    def frames(self, samples: int) -> int:
        """How many frames sherpa-onnx decodes of a stream: of whole chunks that something follows."""
        chunk, front = self.info.chunk_frames, self.info.model.front_end
        ready = (samples + 80) // 160 - 2  # the last windows wait for audio behind them
        return chunk * max(0, (ready - front.window(chunk) - 1) // (chunk * front.stride) + 1)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--experiment", type=Path, required=True, help="an experiment's folder, after stage 12")
    options.add_argument("--sets", required=True, help="cut sets, comma-separated")
    options.add_argument("--data-dir", type=Path, help="the recipe's; default: the one beside the experiments' folder")
    args = options.parse_args()
    from distill.server.app import data_folder

    torch.set_num_threads(1)
    data = args.data_dir or data_folder(args.experiment)
    sets = ((name, load(args.experiment, data, name)) for name in args.sets.split(","))
    finish(chain.from_iterable(compared(model, name) for name, model in sets), args.json)


def load(folder: Path, data: Path, test_set: str) -> Model:
    """The model, and a test set of the recipe."""
    cuts = load_cuts(data / "cuts", [test_set])
    waves = {cut.id: np.concatenate([read_audio(cut), SILENCE]).astype(np.float32) for cut in cuts}
    references = {cut.id: (text_of(cut) or "").split() for cut in cuts}
    return Model(folder, ModelInfo.of_export(folder / "export" / "export.json"), waves, references)


def compared(model: Model, test_set: str) -> Iterator[Row]:
    """A row for each mode, output and runtime; torch first, as the others are compared with it."""
    for mode in ("streaming", "offline") if model.info.chunk_frames else ("offline",):
        for output in model.info.selectable:
            first: tuple[Found, Found] | None = None
            for engine, words, tokens in ways(model, mode, output):
                first = first or (words, tokens)
                yield {
                    "case": f"{test_set} {mode}, {READ[output]}",
                    "engine": engine,
                    **figures(model, words, tokens, *first),
                }


def figures(model: Model, words: Found, tokens: Found, first_words: Found, first_tokens: Found) -> dict:
    """Error rate, and likeness to the first."""
    scored, theirs = (
        [score(name, model.references[name], found[name]) for name in model.waves] for found in (words, first_words)
    )
    rate, against = ErrorRate.of(scored), paired_bootstrap(scored, theirs)
    same = {name: sum(found[n] == first[n] for n in found) for name, found, first in (
        ("same_words", words, first_words), ("same_tokens", tokens, first_tokens)) if found}  # fmt: skip
    return {
        "wer": rate.wer, "wer_low": rate.ci95[0], "wer_high": rate.ci95[1],
        "difference_from_torch": against.difference, "difference_from_torch_low": against.low,
        "difference_from_torch_high": against.high, "utterances": len(scored),
        "same_words": same["same_words"], "same_tokens": same.get("same_tokens"),
    }  # fmt: skip


def ways(model: Model, mode: str, output: str) -> Iterator[tuple[str, Found, Found]]:
    """Yields (engine, words, tokens) for each runtime that supports this mode and output."""
    for runtime in ("torch", "onnx", "int8"):
        session = open_session(model.folder, runtime, mode, output)
        yield (runtime, *read(model, session, mode))
    kind = "sherpa" if mode == "streaming" else "whole"
    for int8 in (False, True):
        path = model.export / file_name(kind, output, int8)
        if (
            path.is_file()
            and output != "transducer"
            and (model.info.model.front_end.input == "fbank" or mode == "offline")
            and (mode, output) != ("offline", "main")
        ):
            for name, batch in (("alone", 1), ("in batches", BATCH)):
                found = over_sherpa(model, path, mode, output, batch)
                yield (f"sherpa-onnx{' int8' if int8 else ''} {name}", *found)


def read(model: Model, session: Session, mode: str) -> tuple[Found, Found]:
    """Words and (of ctc) tokens of a session of ours."""
    new_search = open_search(model.folder, session.runner) if session.output != "ctc" else None
    words, tokens = Found(), Found()
    for name, wave in model.waves.items():
        log_probs = session.whole(wave)
        if mode == "streaming" and model.info.model.front_end.input == "fbank":
            log_probs = log_probs[: model.frames(len(wave))]
        if new_search is None:
            tokens[name] = best(model, log_probs)
            words[name] = spelled(tokens[name])
        else:
            search = new_search()
            search.feed(log_probs)
            words[name] = tuple(word.text for word in search.words(ended=True)[0])
    return words, tokens


def best(model: Model, log_probs: np.ndarray) -> tuple[str, ...]:
    """The best output of each frame, repeats merged, blanks dropped."""
    ids = [0, *log_probs.argmax(1).tolist()]
    return tuple(model.info.outputs[b] for a, b in pairwise(ids) if b not in (0, a))


def spelled(tokens: Sequence[str]) -> tuple[str, ...]:
    """Words of pieces; other units as they are."""
    pieces = any(WORD_START in token for token in tokens)
    return tuple("".join(tokens).replace(WORD_START, " ").split() if pieces else tokens)


def over_sherpa(model: Model, path: Path, mode: str, output: str, batch: int) -> tuple[Found, Found]:
    """Words and tokens of sherpa-onnx, `batch` utterances at a time."""
    import sherpa_onnx

    tokens = str(model.export / "tokens.txt")
    if mode == "offline":
        kinds = sherpa_onnx.OfflineRecognizer
        load = (
            kinds.from_zipformer_ctc if model.info.model.front_end.input == "fbank" else kinds.from_omnilingual_asr_ctc
        )
        offline = load(str(path), tokens)
        return in_batches(model, batch, lambda waves: whole(offline, waves))
    graph = str(model.export / "ctc_graph.fst") if output == "main" else ""
    online = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(tokens, str(path), num_threads=1, ctc_graph=graph)
    names = [line.split()[0] for line in (model.export / "words.txt").read_text(encoding="utf-8").splitlines()]
    return in_batches(model, batch, lambda waves: streamed(online, waves, names if graph else None))


def in_batches(model: Model, batch: int, run: Callable[[list[np.ndarray]], list[tuple]]) -> tuple[Found, Found]:
    """Words and tokens that `run` gives for some waves at a time; those of a graph are words alone."""
    names, words, tokens = list(model.waves), Found(), Found()
    for start in range(0, len(names), batch):
        some = names[start : start + batch]
        for name, (graph_words, units) in zip(some, run([model.waves[name] for name in some])):
            words[name] = spelled(units) if graph_words is None else graph_words
            tokens |= {name: units} if graph_words is None else {}
    return words, tokens


def whole(recogniser, waves: list[np.ndarray]) -> list[tuple]:
    """(None, tokens) of whole utterances."""
    streams = [recogniser.create_stream() for _ in waves]
    for stream, wave in zip(streams, waves):
        stream.accept_waveform(SAMPLE_RATE, wave)
    recogniser.decode_streams(streams)
    return [(None, shown(stream.result.tokens)) for stream in streams]


def streamed(recogniser, waves: list[np.ndarray], names: Sequence[str] | None) -> list[tuple]:
    """(words, tokens) of streams fed a quarter of a second at a time; words by their names where there is a graph."""
    streams = [recogniser.create_stream() for _ in waves]
    for start in range(0, max(map(len, waves)), 4000):
        for stream, wave in zip(streams, waves):
            if start < len(wave):
                stream.accept_waveform(SAMPLE_RATE, wave[start : start + 4000])
        while ready := [stream for stream in streams if recogniser.is_ready(stream)]:
            recogniser.decode_streams(ready)
    found = []
    for stream in streams:
        words = None if names is None else tuple(names[i] for i in recogniser.get_result_all(stream).words)
        found.append((words, shown(recogniser.tokens(stream))))
    return found


def shown(tokens: Sequence[str]) -> tuple[str, ...]:
    """sherpa-onnx's tokens, which have a space for the sign of a new word."""
    return tuple(token.replace(" ", WORD_START) for token in tokens)


if __name__ == "__main__":
    run_script(main)
