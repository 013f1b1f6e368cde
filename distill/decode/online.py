"""Incremental search of HLG while audio arrives, with word times, confidences and endpoints."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from distill.decode.endpoint import RULES, Rule, at_endpoint
from distill.decode.graph_decoder import GraphDecoder, Hypothesis
from distill.decode.word_times import Unit, WordTimes
from distill.fsa.lattice import Lattice, Search
from distill.graphs.lexicon import Lang
from distill.lfmmi import NativeEngine
from distill.search.beam import OngoingSearch
from distill.text import Word

log = logging.getLogger(__name__)

ONLINE = Search(beam=13.0, lattice_beam=4.0, max_active=1000)


class OnlineDecoder:
    """State shared by all streams: the graph with its beams, endpoint rules. frame_seconds: duration of a frame."""

    def __init__(self, graph: GraphDecoder, frame_seconds: float, rules: Sequence[Rule] = RULES) -> None:
        self.graph, self.lang, self.rules = graph, graph.lang, rules
        self.times = WordTimes(graph, frame_seconds)

    @classmethod
    def open(
        cls, hlg: Path, lang: Lang, frame_seconds: float, search: Search = ONLINE, rules: Sequence[Rule] = RULES
    ) -> OnlineDecoder:
        """Read the graph; raises FileNotFoundError naming the stage that writes it, ValueError for another file."""
        return cls(GraphDecoder(NativeEngine(), hlg, lang, search), frame_seconds, rules)


@dataclass(frozen=True)
class Progress:
    """Words so far with their spans in seconds; the first `stable` of them are final.

    silence: seconds since the last unit. ended: whether an endpoint rule ends the utterance here.
    """

    words: tuple[str, ...]
    spans: tuple[tuple[float, float], ...]
    stable: int
    silence: float
    ended: bool


class WordSearch(Protocol):
    """The search of one stream, whatever its output."""

    def feed(self, log_probs: np.ndarray) -> None:
        """The next frames of what a session gives, (T, V) or (T, J)."""

    def progress(self) -> Progress:
        """Words so far."""

    def words(self, ended: bool = False) -> tuple[list[Word], bool]:
        """Words with confidences, and whether the utterance ends here. ended: no more frames follow."""

    def restart(self) -> None:
        """Begin another utterance; times continue."""


class OnlineSearch:
    """The search of one stream: feed() frames; progress() or words(); finish(); restart() for the next utterance.

    finish() gives the same as `GraphDecoder.lattices` for the whole utterance, in whatever chunks its frames arrived.
    """

    def __init__(self, decoder: OnlineDecoder) -> None:
        self.decoder, self._before = decoder, 0
        self._search = OngoingSearch(decoder.graph.graph, decoder.graph.search)

    @property
    def frames(self) -> int:
        """Frames of this utterance so far."""
        return self._search.frames

    def feed(self, log_probs: np.ndarray) -> None:
        """Search the next frames (T, V), T may be 0. Where no path survives, the search starts anew with a warning."""
        if not self._search.feed(self.decoder.graph.frames(log_probs)):
            log.warning("the beam is too narrow: no path survives %d frames; the search starts anew", self.frames)
            self.restart()

    def progress(self) -> Progress:
        """The best path so far; cheaper than `words`."""
        best, times = self._search.best(), self.decoder.times
        if best is None:
            silence, ended = self._endpoint(0, False)
            return Progress((), (), 0, silence, ended)
        arcs = np.flatnonzero(best.word > 0)
        names = tuple(self.decoder.graph.words[word] for word in best.word[arcs].tolist())
        units = times.units(best.label)
        spans = times.spans(units, names, best.frame[arcs].tolist())
        seconds = tuple((times.seconds(self._before + a), times.seconds(self._before + b)) for a, b in spans)
        silence, ended = self._endpoint(_end(units), bool(names))
        return Progress(names, seconds, int(np.searchsorted(arcs, best.stable)), silence, ended)

    def words(self, ended: bool = False) -> tuple[list[Word], bool]:
        """Words of the utterance so far with confidences, and whether it ends here. ended: no more frames follow."""
        times, best = self.decoder.times, self._search.best()
        words = times.words(self._search.lattice(ended), self._before)
        last = _end(times.units(best.label)) if best else 0
        return words, self._endpoint(last, bool(words))[1]

    def finish(self) -> tuple[Hypothesis, Lattice]:
        """Best path and lattice of the utterance."""
        lattice = self._search.lattice(True)
        return self.decoder.graph.best(lattice), lattice

    def restart(self) -> None:
        """Begin another utterance; times continue."""
        self._before += self.frames
        self._search = OngoingSearch(self.decoder.graph.graph, self.decoder.graph.search)

    def _endpoint(self, last: int, words: bool) -> tuple[float, bool]:
        """Seconds of silence after frame `last`, the end of the last unit, and whether the utterance ends here."""
        seconds = self.decoder.times.seconds
        silence = seconds(self.frames - last)
        return silence, at_endpoint(self.decoder.rules, seconds(self.frames), silence, words)


def _end(units: Sequence[Unit]) -> int:
    return max((unit.end for unit in units), default=0)


def load_lang(data: Path, outputs: Sequence[str]) -> tuple[Lang, Path]:
    """The lang folder below a data folder with the outputs of a model, and the folder of its graphs.

    Raises FileNotFoundError without any lang folder, ValueError where none fits.
    """
    folders = sorted(path.parent for path in data.glob("lang_*/tokens.txt"))
    if not folders:
        raise FileNotFoundError(f"no lang folder in {data}; stage 2 writes it, or name the data folder (--data-dir)")
    for folder in folders:
        lang = Lang.load(folder)
        if lang.outputs == list(outputs):
            suffix = folder.name.removeprefix("lang_")
            return lang, data / ("graphs" if suffix == "phones" else f"graphs_{suffix}")
    names = ", ".join(folder.name for folder in folders)
    raise ValueError(f"none of {names} in {data} has the model's {len(outputs)} outputs; it was trained with others")


def open_exported(
    folder: Path, outputs: Sequence[str], frame_seconds: float, hlg: Path | None = None, search: Search = ONLINE
) -> OnlineDecoder:
    """The decoder of an export folder: its lang folder, and `hlg` or its own graph.

    outputs: the model's. Raises FileNotFoundError or ValueError for a missing or foreign file.
    """
    hlg = hlg or folder / "HLG.fst"
    for needed in (hlg, folder / "lang/tokens.txt"):
        if not needed.is_file():
            raise FileNotFoundError(
                f"an output trained with LF-MMI needs a decoding graph, but there is no {needed}; run stage 12,"
                " or use a model with a second output (--output ctc)"
            )
    return OnlineDecoder.open(hlg, exported_lang(folder, outputs), frame_seconds, search)


def exported_lang(folder: Path, outputs: Sequence[str]) -> Lang:
    """The lang folder of an export folder; raises FileNotFoundError, ValueError for other outputs than the model's."""
    lang = folder / "lang"
    if not (lang / "tokens.txt").is_file():
        raise FileNotFoundError(
            f"words need a lexicon, but there is no {lang / 'tokens.txt'}; run stage 12, or name the recipe's data"
            " folder (--data-dir)"
        )
    if (loaded := Lang.load(lang)).outputs != list(outputs):
        raise ValueError(f"{lang} is for other outputs than the model's {len(outputs)}; run stage 12 again")
    return loaded
