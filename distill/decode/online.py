"""Words while audio arrives: an incremental search of HLG, with word times, confidences and endpoints."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.decode.lattice import GraphDecoder
from distill.fsa import Lattice, NativeEngine, Search
from distill.fsa.search import OngoingSearch
from distill.fsa.sequences import best_path
from distill.graphs.lexicon import Lang

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Word:
    """A word, its begin and end in seconds of the stream, and how sure the lattice is of its frames, 0 to 1."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Endpoint:
    """When an utterance ends, in seconds: the rules of Kaldi's online decoders with sherpa-onnx's defaults.

    silence: after so much without any word; pause: after so much behind a word; longest: utterances are cut
    at the first pause of `breath` beyond this, and without one at twice this.
    """

    silence: float = 2.4
    pause: float = 1.2
    longest: float = 20.0
    breath: float = 0.1

    def reached(self, length: float, trailing: float, said: bool) -> bool:
        """Whether an utterance of so many seconds ends, of which the last `trailing` are silent."""
        if trailing >= (self.pause if said else self.silence):
            return True
        return length >= self.longest and (trailing >= self.breath or length >= 2 * self.longest)


class OnlineDecoder:
    """What all streams share: the graph, the lang folder, beams, endpoint rules. frame: seconds of one.

    Raises FileNotFoundError naming the stage that writes the graph, ValueError for another kind of file.
    """

    def __init__(
        self, hlg: Path, lang: Lang, frame: float, search: Search | None = None, acoustic_scale: float = 1.0,
        endpoint: Endpoint | None = None,
    ) -> None:  # fmt: skip
        search = search or Search(beam=13.0, lattice_beam=4.0, max_active=1000)
        self.graph = GraphDecoder(NativeEngine(), hlg, lang, search, acoustic_scale)
        self.frame, self.endpoint = frame, endpoint or Endpoint()
        self.blank = -1 if lang.topology.kind == "two_pdf" else 0
        self.ids: dict[str, tuple[tuple[int, ...], ...]] = {}

    @property
    def lang(self) -> Lang:
        return self.graph.lang

    def spoken(self, word: str) -> tuple[tuple[int, ...], ...]:
        """Pronunciations as unit ids, without silence."""
        if word not in self.ids:
            variants = self.lang.pronunciation_ids(word, "the decoding graph")
            self.ids[word] = tuple(tuple(u for u in units if u != self.lang.silence) for units in variants)
        return self.ids[word]


class OnlineSearch:
    """The words of one stream: feed() frames, words() so far, and restart() where the utterance ended."""

    def __init__(self, decoder: OnlineDecoder) -> None:
        self.decoder, self._before = decoder, 0
        self._begin()

    def _begin(self) -> None:
        graph = self.decoder.graph
        self._search, self._frames = OngoingSearch(graph.graph, graph.search), 0

    def feed(self, log_probs: np.ndarray) -> None:
        """The next frames (T, V)."""
        graph = self.decoder.graph
        alive = self._search.feed(graph.acoustic_scale * log_probs[:, graph.columns])
        self._frames += len(log_probs)
        if not alive:
            log.warning("the beam is too narrow: no path goes on after %d frames; the search starts anew", self._frames)
            self.restart()

    def words(self, ended: bool = False) -> tuple[list[Word], bool]:
        """Words of the utterance so far, and whether it ends here. ended: no more frames will come."""
        lattice = self._search.lattice(ended)
        if not lattice.num_states:
            return [], self._reached(self._frames, False)
        path, posterior = best_path(lattice)
        units = heard(self.decoder, lattice.label[path])
        words = self._timed(lattice, path, units, posterior)
        last = max((unit.end for unit in units), default=0)
        return words, self._reached(self._frames - last, bool(words))

    def restart(self) -> None:
        """What comes next is another utterance; times go on."""
        self._before += self._frames
        self._begin()

    def _reached(self, trailing: int, said: bool) -> bool:
        frame = self.decoder.frame
        return self.decoder.endpoint.reached(self._frames * frame, trailing * frame, said)

    def _timed(self, lattice: Lattice, path: np.ndarray, units: Sequence[Unit], posterior: np.ndarray) -> list[Word]:
        ids = lattice.word[path]
        names = [self.decoder.graph.words[word] for word in ids[ids > 0].tolist()]
        spans = spans_of(units, [self.decoder.spoken(name) for name in names])
        if spans is None:  # units of no pronunciation: the word stands where the graph says it
            said = lattice.frame[lattice.src[path[ids > 0]]].tolist()
            spans = [(start, start + 1) for start in said]
        frame, before = self.decoder.frame, self._before
        return [
            Word(
                name, round((before + start) * frame, 3), round((before + end) * frame, 3),
                round(float(posterior[start:end].mean()) if end > start else 0.0, 3),
            )
            for name, (start, end) in zip(names, spans)
        ]  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """A unit that is heard from frame `start` to before frame `end`."""

    unit: int
    start: int
    end: int


def heard(decoder: OnlineDecoder, labels: np.ndarray) -> list[Unit]:
    """Units of the outputs along a path, silence and blanks left out; labels -1 take no frame."""
    labels, hearing = labels[labels >= 0], decoder.graph.hearing
    again = np.concatenate([[False], labels[1:] == labels[:-1]])
    fresh = np.where(again, hearing.again[labels], hearing.fresh[labels])
    starts = np.flatnonzero(fresh)
    ends = [*starts[1:].tolist(), len(labels)]
    blank = labels == decoder.blank
    units = []
    for start, end in zip(starts.tolist(), ends):
        while blank[end - 1]:
            end -= 1
        if fresh[start] != decoder.lang.silence:
            units.append(Unit(int(fresh[start]), start, end))
    return units


def spans_of(
    units: Sequence[Unit], words: Sequence[Sequence[Sequence[int]]]
) -> list[tuple[int, int]] | None:  # fmt: skip
    """First frame of each word and the one after its last: words by their pronunciations, one after another.

    The last word may have begun only, and units may follow that belong to no word yet. None where they
    do not fit.
    """
    symbols = tuple(unit.unit for unit in units)
    reached: list[dict[int, int]] = [{0: -1}]  # of each word: position after it -> position before it
    for index, variants in enumerate(words):
        found: dict[int, int] = {}
        for begin in reached[-1]:
            for variant in variants:
                end = begin + len(variant)
                piece = symbols[begin:end]
                unfinished = index == len(words) - 1 and len(piece) < len(variant) and piece == variant[: len(piece)]
                if piece == tuple(variant) or (unfinished and piece):
                    found.setdefault(min(end, len(symbols)), begin)
        if not found:
            return None
        reached.append(found)
    position, spans = max(reached[-1]), []
    for found in reversed(reached[1:]):
        before = found[position]
        spans.append((units[before].start, units[position - 1].end))
        position = before
    return spans[::-1]


def load_lang(data: Path, outputs: Sequence[str]) -> tuple[Lang, Path]:
    """The lang folder of a data folder whose outputs a model has, and the folder of its graphs.

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
