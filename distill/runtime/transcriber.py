"""Words from a session: over a decoding graph, by a transducer's beam, or greedily from a CTC output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distill.config.model import SAMPLE_RATE
from distill.decode.endpoint import RULES, at_endpoint
from distill.decode.online import (
    ONLINE,
    OnlineDecoder,
    OnlineSearch,
    Progress,
    WordSearch,
    exported_lang,
    load_lang,
    open_exported,
)
from distill.decode.online_transducer import NGRAM, OnlineBeam, TransducerDecoder, open_tree
from distill.decode.transducer import with_penalty
from distill.runtime.runner import BatchRunner, Runner
from distill.runtime.session import Session
from distill.text import Word

WORD_START = "▁"  # begins the first piece of a word (SentencePiece)
ENDPOINT_INTERVAL = 10  # frames between two checks for an endpoint, independent of the chunk size


class GreedySearch:
    """The best output of each frame, repeats merged and blanks dropped, as for CTC; methods as of `OnlineSearch`.

    Pieces with '▁' become words; other units are words themselves. frame: seconds of one. A word lasts from the
    first frame of its first output to the last of its last; its confidence is the product of its outputs' highest
    probabilities.
    """

    def __init__(self, outputs: Sequence[str], frame: float) -> None:
        self._outputs, self._frame = outputs, frame
        self._pieces = any(output.startswith(WORD_START) for output in outputs)
        self._frames = 0
        self.restart()

    def restart(self) -> None:
        self._emitted: list[Word] = []  # outputs
        self._last, self._start = 0, self._frames

    def feed(self, log_probs: np.ndarray) -> None:
        for best, score in zip(log_probs.argmax(1).tolist(), log_probs.max(axis=1, initial=-np.inf).tolist()):
            start, self._frames = self._seconds(self._frames), self._frames + 1
            end, confidence = self._seconds(self._frames), math.exp(score)
            if best not in (0, self._last):
                self._emitted.append(Word(self._outputs[best], start, end, confidence))
            elif best:
                confidence = max(confidence, self._emitted[-1].confidence)
                self._emitted[-1] = replace(self._emitted[-1], end=end, confidence=confidence)
            self._last = best

    def progress(self) -> Progress:
        words, ended = self.words()
        spans = tuple((word.start, word.end) for word in words)
        return Progress(tuple(word.text for word in words), spans, max(0, len(words) - 1), self._silence(), ended)

    def words(self, ended: bool = False) -> tuple[list[Word], bool]:
        words: list[Word] = []
        for output in self._emitted:
            if not self._pieces or not words or output.text.startswith(WORD_START):
                words.append(replace(output, text=output.text.removeprefix(WORD_START)))
            else:
                last = words[-1]
                confidence = last.confidence * output.confidence
                words[-1] = Word(last.text + output.text, last.start, output.end, confidence)
        words = [replace(w, confidence=round(min(1.0, w.confidence), 4)) for w in words if w.text]
        length = self._seconds(self._frames - self._start)
        return words, at_endpoint(RULES, length, self._silence(), bool(self._emitted))

    def _silence(self) -> float:
        """Seconds since the last output, or since the start."""
        last = self._emitted[-1].end if self._emitted else self._seconds(self._start)
        return self._seconds(self._frames) - last

    def _seconds(self, frames: int) -> float:
        return round(frames * self._frame, 3)


NewSearch = Callable[[], WordSearch]
"""Makes the search of a stream."""


class Transcriber:
    """Words of a stream while its audio comes: feed(), then finish().

    segments: utterances are split by the endpoint rules; else a stream is one.
    """

    def __init__(self, session: Session, search: NewSearch, segments: bool = False) -> None:
        self.session, self.segments, self._new_search = session, segments, search
        self.reset()

    def reset(self) -> None:
        """Begin another stream."""
        self.session.reset()
        self._search = self._new_search()

    def feed(self, samples: Any) -> list[tuple[Word, ...]]:
        """Utterances that end within these samples (as `Session.feed` takes them), without empty ones."""
        return self._advance(self.session.feed(samples).log_probs)

    def partial(self) -> tuple[str, ...]:
        """Words so far of the current utterance."""
        return self._search.progress().words

    def finish(self) -> list[tuple[Word, ...]]:
        """The remaining utterances; the next stream may begin."""
        ended = self._advance(self.session.flush().log_probs)
        words, _ = self._search.words(ended=True)
        self.reset()
        return [*ended, tuple(words)] if words else ended

    def _advance(self, log_probs: np.ndarray) -> list[tuple[Word, ...]]:
        step, ended = ENDPOINT_INTERVAL if self.segments else max(1, len(log_probs)), []
        for start in range(0, len(log_probs), step):
            self._search.feed(log_probs[start : start + step])
            if self.segments and self._search.progress().ended:
                ended.append(tuple(self._search.words(ended=True)[0]))
                self._search.restart()
        return [words for words in ended if words]


def open_search(
    folder: Path | str, runner: Runner | BatchRunner, graph: Path | None = None, beam: float | None = None,
    data: Path | None = None,
) -> NewSearch:  # fmt: skip
    """Searches for the output of a runner of an experiment's folder, an export folder or a published model.

    main: of `graph`, by default the one in the export folder, with this beam. transducer: of the lexicon with its
    n-gram there. ctc and published models: greedy, unless there is a `graph`. data: a recipe's data folder, whose lang
    folder, graphs and n-gram take the place of the export folder's.

    Raises FileNotFoundError or ValueError that name what is missing, and for options of other outputs.
    """
    info = runner.info
    frame = info.hop / SAMPLE_RATE
    if isinstance(folder, str) and graph is not None:
        raise ValueError(f"--graph {graph} needs the lang folder of an export; {folder} is decoded greedily")
    if isinstance(folder, str) or (runner.output == "ctc" and graph is None):
        return partial(GreedySearch, info.outputs, frame)
    folder = folder if (folder / "export.json").is_file() else folder / "export"
    if runner.output == "transducer":
        if graph is not None or beam is not None:
            raise ValueError(
                f"--graph and --beam are of outputs over a graph; the transducer of {info.name} has a beam of"
                f" {info.transducer_beam} hypotheses (decoding.transducer_beam)"
            )
        return _transducer_search(folder, runner, data, frame)
    search = ONLINE if beam is None else replace(ONLINE, beam=beam)
    if data is None:
        return partial(OnlineSearch, open_exported(folder, info.outputs, frame, graph, search))
    lang, graphs = load_lang(data, info.outputs)
    return partial(OnlineSearch, OnlineDecoder.open(graph or graphs / "HLG.fst", lang, frame, search))


def _transducer_search(folder: Path, runner: Runner | BatchRunner, data: Path | None, frame: float) -> NewSearch:
    """Beams over the lexicon and n-gram of an export folder, or of a data folder."""
    info = runner.info
    if data is None:
        lang, arpa = exported_lang(folder, info.outputs), folder / NGRAM
    else:
        lang, graphs = load_lang(data, info.outputs)
        arpa = graphs.with_name(graphs.name.replace("graphs", "lm", 1)) / NGRAM
    assert runner.network is not None
    tree = open_tree(lang, arpa, info.transducer_lm_scale)
    network = with_penalty(runner.network, info.transducer_blank_penalty)
    return partial(OnlineBeam, TransducerDecoder(network, tree, info.transducer_beam, frame))
