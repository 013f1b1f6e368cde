"""A session and what makes text of its log-probabilities: words over a graph, or the outputs themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distill.decode.endpoint import Endpoint
from distill.decode.online import ONLINE, OnlineDecoder, OnlineSearch, open_exported
from distill.runtime.session import SAMPLE_RATE, Session
from distill.text import Word

PIECE_SPACE = "▁"
LOOK = 10  # frames after which is asked whether an utterance ends, however many come at once


@dataclass(frozen=True)
class Said:
    """What is known of an utterance so far, and whether it ends here by a rule of `Endpoint`."""

    words: Sequence[str]
    ended: bool


class Reader(Protocol):
    """Makes text of log-probabilities."""

    def reset(self) -> None:
        """Begin a stream."""

    def advance(self, log_probs: np.ndarray) -> None:
        """New frames (T, V)."""

    def said(self) -> Said:
        """The utterance so far."""

    def finish(self) -> tuple[Word, ...]:
        """The whole utterance; what comes next is another one, and times go on."""


class GraphReader:
    """Words over a decoding graph: `OnlineSearch` behind the face of a `Reader`."""

    def __init__(self, decoder: OnlineDecoder) -> None:
        self.decoder = decoder
        self.reset()

    def reset(self) -> None:
        self._search = OnlineSearch(self.decoder)

    def advance(self, log_probs: np.ndarray) -> None:
        self._search.feed(log_probs)

    def said(self) -> Said:
        progress = self._search.progress()
        return Said(progress.words, progress.ended)

    def finish(self) -> tuple[Word, ...]:
        words, _ = self._search.words(ended=True)
        self._search.restart()
        return tuple(words)


class OutputReader:
    """Frame-wise best outputs, repeats merged and blanks dropped: what a CTC output is made for.

    Pieces with '▁' become words; other units are shown one by one. frame: seconds of one. A word lasts from the
    first frame of its first output to the last of its last; its confidence is the product of its outputs' highest
    probabilities.
    """

    def __init__(self, outputs: Sequence[str], frame: float, endpoint: Endpoint | None = None) -> None:
        self._outputs, self._frame, self._endpoint = outputs, frame, endpoint or Endpoint()
        self._pieces = any(output.startswith(PIECE_SPACE) for output in outputs)
        self.reset()

    def reset(self) -> None:
        self._frames = 0
        self._begin()

    def _begin(self) -> None:
        self._heard: list[Word] = []  # outputs
        self._last, self._start = 0, self._frames

    def advance(self, log_probs: np.ndarray) -> None:
        for best, sure in zip(log_probs.argmax(1).tolist(), log_probs.max(axis=1, initial=-np.inf).tolist()):
            begun = self._seconds(self._frames)
            self._frames += 1
            if best not in (0, self._last):
                self._heard.append(Word(self._outputs[best], begun, self._seconds(self._frames), math.exp(sure)))
            elif best:
                sure = max(math.exp(sure), self._heard[-1].confidence)
                self._heard[-1] = replace(self._heard[-1], end=self._seconds(self._frames), confidence=sure)
            self._last = best

    def said(self) -> Said:
        length = self._seconds(self._frames - self._start)
        silence = self._seconds(self._frames) - self._heard[-1].end if self._heard else length
        ended = self._endpoint.reached(length, silence, math.inf, bool(self._heard))
        return Said([word.text for word in self._words()], ended)

    def finish(self) -> tuple[Word, ...]:
        words = tuple(replace(word, confidence=round(min(1.0, word.confidence), 4)) for word in self._words())
        self._begin()
        return words

    def _words(self) -> list[Word]:
        if not self._pieces:
            return self._heard
        words: list[Word] = []
        for piece in self._heard:
            if piece.text.startswith(PIECE_SPACE) or not words:
                words.append(replace(piece, text=piece.text.removeprefix(PIECE_SPACE)))
            else:
                last, sure = words[-1], words[-1].confidence * piece.confidence
                words[-1] = Word(last.text + piece.text, last.start, piece.end, sure)
        return [word for word in words if word.text]

    def _seconds(self, frames: int) -> float:
        return round(frames * self._frame, 3)


class Transcriber:
    """Words while audio comes: `hear` pieces, `finish` at the end of the stream.

    segments: a stream has as many utterances as `Endpoint`'s rules find; without, it is one.
    """

    def __init__(self, session: Session, reader: Reader, segments: bool = False) -> None:
        self.session, self.reader, self.segments = session, reader, segments

    def hear(self, samples: Any) -> list[tuple[Word, ...]]:
        """Utterances that end within these samples (as `Session.feed` takes them), those without words left out."""
        return self._read(self.session.feed(samples).log_probs)

    def so_far(self) -> tuple[str, ...]:
        """The text of the utterance that is going on."""
        return tuple(self.reader.said().words)

    def finish(self) -> list[tuple[Word, ...]]:
        """The utterances that are left; the next stream may begin."""
        ended = [*self._read(self.session.flush().log_probs), self.reader.finish()]
        self.reader.reset()
        return [words for words in ended if words]

    def reset(self) -> None:
        """Forget the stream."""
        self.session.reset()
        self.reader.reset()

    def _read(self, log_probs: np.ndarray) -> list[tuple[Word, ...]]:
        step, ended = LOOK if self.segments else max(1, len(log_probs)), []
        for start in range(0, len(log_probs), step):
            self.reader.advance(log_probs[start : start + step])
            if self.segments and self.reader.said().ended:
                ended.append(self.reader.finish())
        return [words for words in ended if words]


def open_reader(
    folder: Path, session: Session, output: str, graph: Path | None = None, beam: float = ONLINE.beam
) -> Reader:
    """Words over `graph`, by default the one in the export folder; the outputs themselves for the CTC output.

    Raises FileNotFoundError or ValueError saying what a model needs.
    """
    facts = session.facts
    frame = facts.hop / SAMPLE_RATE
    if output == "ctc" and graph is None:
        return OutputReader(facts.outputs, frame)
    folder = folder if (folder / "export.json").is_file() else folder / "export"
    return GraphReader(open_exported(folder, facts.outputs, frame, graph, replace(ONLINE, beam=beam)))
