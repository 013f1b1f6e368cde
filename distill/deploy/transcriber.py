"""A session and what makes text of its log-probabilities: words over a graph, or the outputs themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distill.decode.live import LiveDecoder
from distill.deploy.session import Session

PIECE_SPACE = "▁"


class Reader(Protocol):
    """Makes text of log-probabilities."""

    def reset(self) -> None:
        """Begin an utterance."""

    def advance(self, log_probs: np.ndarray) -> None:
        """New frames (T, V)."""

    def words(self, final: bool = False) -> Sequence[str]:
        """The text so far."""


class OutputReader:
    """Frame-wise best outputs, repeats merged and blanks dropped: what a CTC output is made for.

    Pieces with '▁' become words; other units are shown one by one.
    """

    def __init__(self, outputs: Sequence[str]) -> None:
        self._outputs = outputs
        self._pieces = any(output.startswith(PIECE_SPACE) for output in outputs)
        self.reset()

    def reset(self) -> None:
        self._heard: list[str] = []
        self._last = 0

    def advance(self, log_probs: np.ndarray) -> None:
        for best in log_probs.argmax(1).tolist():
            if best not in (0, self._last):
                self._heard.append(self._outputs[best])
            self._last = best

    def words(self, final: bool = False) -> Sequence[str]:
        return "".join(self._heard).replace(PIECE_SPACE, " ").split() if self._pieces else self._heard


class Transcriber:
    """Text while audio comes: `hear` pieces, `finish` at the end of the utterance."""

    def __init__(self, session: Session, reader: Reader) -> None:
        self.session, self.reader = session, reader

    def hear(self, samples: Any) -> tuple[str, ...]:
        """The text so far, these samples (as `Session.feed` takes them) included."""
        self.reader.advance(self.session.feed(samples).log_probs)
        return tuple(self.reader.words())

    def finish(self) -> tuple[str, ...]:
        """The text of the whole utterance; the next one may begin."""
        self.reader.advance(self.session.flush().log_probs)
        words = tuple(self.reader.words(final=True))
        self.reader.reset()
        return words

    def whole(self, pieces: Iterable[Any]) -> tuple[str, ...]:
        """The text of one utterance given in pieces."""
        self.session.reset()
        self.reader.reset()
        for piece in pieces:
            self.hear(piece)
        return self.finish()


def open_reader(folder: Path, session: Session, output: str, graph: Path | None = None, beam: float = 15.0) -> Reader:
    """Words over `graph`, by default the one in the export folder; the outputs themselves for the CTC output.

    Raises FileNotFoundError or ValueError saying what a model needs.
    """
    folder = folder if (folder / "words.txt").is_file() else folder / "export"
    if output == "ctc" and graph is None:
        return OutputReader(session.facts.outputs)
    hlg = graph or folder / "HLG.fst"
    if not hlg.is_file() or not (folder / "words.txt").is_file():
        raise FileNotFoundError(
            f"an output trained with LF-MMI is read over a decoding graph, but {hlg} or {folder / 'words.txt'} is"
            " missing; run stage 12, or use a model with a second output (--output ctc)"
        )
    rows = (line.split() for line in (folder / "words.txt").read_text(encoding="utf-8").splitlines())
    columns = json.loads((folder / "export.json").read_text(encoding="utf-8")).get("columns", [])
    return LiveDecoder(hlg, [row[0] for row in rows if row], columns, beam)
