"""Words while audio arrives: an incremental search of HLG, with word times, confidences and endpoints."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.decode.endpoint import Endpoint
from distill.decode.graph_decoder import GraphDecoder, Hypothesis
from distill.decode.word_times import Span, Unit, WordTimes
from distill.fsa.lattice import Lattice, Search
from distill.graphs.lexicon import Lang
from distill.lfmmi import NativeEngine
from distill.search.beam import OngoingSearch
from distill.text import Word

log = logging.getLogger(__name__)

ONLINE = Search(beam=13.0, lattice_beam=4.0, max_active=1000)


class OnlineDecoder:
    """What all streams share: the graph, the lang folder, beams, endpoint rules. frame: seconds of one.

    Raises FileNotFoundError naming the stage that writes the graph, ValueError for another kind of file.
    """

    def __init__(
        self, hlg: Path, lang: Lang, frame: float, search: Search | None = None, acoustic_scale: float = 1.0,
        endpoint: Endpoint | None = None,
    ) -> None:  # fmt: skip
        self._share(GraphDecoder(NativeEngine(), hlg, lang, search or ONLINE, acoustic_scale), frame, endpoint)

    @classmethod
    def over(cls, graph: GraphDecoder, frame: float, endpoint: Endpoint | None = None) -> OnlineDecoder:
        """With the graph and the beams of a decoder that is there already."""
        decoder = cls.__new__(cls)
        decoder._share(graph, frame, endpoint)
        return decoder

    def _share(self, graph: GraphDecoder, frame: float, endpoint: Endpoint | None) -> None:
        self.graph, self.times, self.endpoint = graph, WordTimes(graph, frame), endpoint or Endpoint()

    @property
    def lang(self) -> Lang:
        return self.graph.lang


@dataclass(frozen=True)
class Progress:
    """Words so far with their spans in seconds; the first `settled` of them will not change any more.

    silence: seconds since something was said. ended: whether the utterance ends here, by an endpoint rule.
    """

    words: tuple[str, ...]
    spans: tuple[tuple[float, float], ...]
    settled: int
    silence: float
    ended: bool


class OnlineSearch:
    """The words of one stream: feed() frames; progress() or words() so far; finish(); restart() for what comes next.

    What finish() gives is what `GraphDecoder.lattices` gives for the utterance as a whole, however its frames came.
    """

    def __init__(self, decoder: OnlineDecoder) -> None:
        self.decoder, self._before = decoder, 0
        self._begin()

    def _begin(self) -> None:
        graph = self.decoder.graph
        self._search = OngoingSearch(graph.graph, graph.search)

    @property
    def frames(self) -> int:
        """Frames of this utterance so far."""
        return self._search.frames

    def feed(self, log_probs: np.ndarray) -> None:
        """The next frames (T, V), none are fine. Where no path goes on, the search starts anew, with a warning."""
        if not self._search.feed(self.decoder.graph.frames(log_probs)):
            log.warning("the beam is too narrow: no path goes on after %d frames; the search starts anew", self.frames)
            self.restart()

    def progress(self) -> Progress:
        """What is known so far, cheaper than `words`."""
        best, times = self._search.best(), self.decoder.times
        if best is None:
            ended, silence = self._reached(0, np.inf, False)
            return Progress((), (), 0, silence, ended)
        said = np.flatnonzero(best.word > 0)
        names = tuple(self.decoder.graph.words[word] for word in best.word[said].tolist())
        heard = times.heard(best.label)
        spans = times.spans(heard, names, best.frame[said].tolist())
        ended, silence = self._reached(_end(heard), best.ending, bool(names))
        settled = int(np.searchsorted(said, best.settled))
        return Progress(names, tuple(map(self._seconds, spans)), settled, silence, ended)

    def words(self, ended: bool = False) -> tuple[list[Word], bool]:
        """Words of the utterance so far, and whether it ends here. ended: no more frames will come."""
        lattice = self._search.lattice(ended)
        words, best = self.decoder.times.words(lattice, self._before), self._search.best()
        heard = _end(self.decoder.times.heard(best.label)) if best else 0
        return words, self._reached(heard, best.ending if best else np.inf, bool(words))[0]

    def finish(self) -> tuple[Hypothesis, Lattice]:
        """Best path and lattice of the utterance."""
        lattice = self._search.lattice(True)
        return self.decoder.graph.best(lattice), lattice

    def restart(self) -> None:
        """What comes next is another utterance; times go on."""
        self._before += self.frames
        self._begin()

    def _reached(self, heard: int, ending: float, words: bool) -> tuple[bool, float]:
        """Whether the utterance ends, of which something is said up to frame `heard`, and the silence behind."""
        seconds = self.decoder.times.seconds
        silence = seconds(self.frames - heard)
        return self.decoder.endpoint.reached(seconds(self.frames), silence, ending, words), silence

    def _seconds(self, span: Span) -> tuple[float, float]:
        seconds = self.decoder.times.seconds
        return seconds(self._before + span[0]), seconds(self._before + span[1])


def _end(heard: Sequence[Unit]) -> int:
    """Frames up to the end of the last unit."""
    return max((unit.end for unit in heard), default=0)


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


def open_exported(
    folder: Path, outputs: Sequence[str], frame: float, hlg: Path | None = None, search: Search = ONLINE
) -> OnlineDecoder:
    """What an export folder decodes with: its lang folder, and `hlg` or its graph.

    outputs: the model's, frame: seconds of one. Raises FileNotFoundError or ValueError saying what is missing.
    """
    hlg = hlg or folder / "HLG.fst"
    for needed in (hlg, folder / "lang/tokens.txt"):
        if not needed.is_file():
            raise FileNotFoundError(
                f"an output trained with LF-MMI is read over a decoding graph, but there is no {needed}; run stage 12,"
                " or use a model with a second output (--output ctc)"
            )
    lang = Lang.load(folder / "lang")
    if lang.outputs != list(outputs):
        raise ValueError(f"{folder / 'lang'} is for other outputs than the model's {len(outputs)}; run stage 12 again")
    return OnlineDecoder(hlg, lang, frame, search)
