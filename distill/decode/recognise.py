"""Words of utterances over HLG with times and confidences: whole, or as their frames would come."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from distill.decode.denominator_path import BLANK
from distill.decode.graph_decoder import GraphDecoder, Hypothesis, decode_all
from distill.decode.nbest import Candidates, candidates
from distill.decode.online import OnlineDecoder, OnlineSearch
from distill.decode.word_times import WordTimes
from distill.fsa.lattice import Lattice, Search
from distill.text import Word

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recognised:
    """The best path of an utterance, its words with their times, and its n-best list where one was asked for."""

    best: Hypothesis
    words: tuple[Word, ...]
    candidates: Candidates | None = None


def recognise(
    decoder: GraphDecoder,
    utterances: Iterable[tuple[str, np.ndarray]],
    frame: float,
    chunk: int = 0,
    blank_skip: float = 0.0,
    nbest: int = 0,
) -> Iterator[tuple[str, Recognised]]:
    """(id, result) of (id, (T, V)) pairs. frame: seconds of one. chunk: frames that come at once; 0: all of them.

    The results are the same for any chunk. A beam too narrow leaves the best partial path of an utterance, or nothing:
    a warning at the end counts them. blank_skip: leave out frames (`without_blanks`), 0 for none; scores are then
    those of the frames that are left. nbest: candidates of each utterance, from the same lattice; 0: none.
    """
    if blank_skip:
        return _spared(decoder, utterances, frame, chunk, blank_skip)
    return _told(_recognised(decoder, utterances, frame, chunk, nbest), decoder.search)


def _recognised(
    decoder: GraphDecoder, utterances: Iterable[tuple[str, np.ndarray]], frame: float, chunk: int, nbest: int
) -> Iterator[tuple[str, Recognised]]:
    def listed(lattice: Lattice) -> Candidates | None:
        return candidates(decoder, lattice, nbest, decoder.search.lattice_beam) if nbest else None

    if chunk:
        return _streamed(OnlineDecoder.over(decoder, frame), utterances, chunk, listed)
    times = WordTimes(decoder, frame)

    def work(_: str, lattice: Lattice) -> Recognised:
        return Recognised(decoder.best(lattice), tuple(times.words(lattice)), listed(lattice))

    return decode_all(decoder, work, utterances)


def _told(found: Iterable[tuple[str, Recognised]], search: Search) -> Iterator[tuple[str, Recognised]]:
    """The same, with a warning where paths stopped short of a final state."""
    partial: list[str] = []
    for name, each in found:
        if not each.best.complete:
            partial.append(name)
        yield name, each
    if partial:
        log.warning(
            "%d utterances, such as %s, ended outside a final state: their best partial path counts; a beam of more"
            " than %g (max_active of more than %d) may find whole ones",
            len(partial), partial[0], search.beam, search.max_active,
        )  # fmt: skip


def _streamed(
    decoder: OnlineDecoder,
    utterances: Iterable[tuple[str, np.ndarray]],
    chunk: int,
    listed: Callable[[Lattice], Candidates | None],
) -> Iterator[tuple[str, Recognised]]:
    def work(pair: tuple[str, np.ndarray]) -> tuple[str, Recognised]:
        name, log_probs = pair
        search = OnlineSearch(decoder)
        for start in range(0, len(log_probs), chunk):
            search.feed(log_probs[start : start + chunk])
        best, lattice = search.finish()
        return name, Recognised(best, tuple(decoder.times.words(lattice)), listed(lattice))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        yield from pool.map(work, utterances)


def without_blanks(log_probs: np.ndarray, least: float) -> np.ndarray:
    """Frames to search, (T, V) -> (K,): of a run whose blank has at least this probability only the first.

    One blank must stay, as it separates equal units. Whether a frame stays depends on it and the one before it alone.
    """
    sure = log_probs[:, BLANK] >= np.log(least)
    again = np.concatenate([[False], sure[:-1]])
    return np.flatnonzero(~(sure & again))


def _spared(
    decoder: GraphDecoder, utterances: Iterable[tuple[str, np.ndarray]], frame: float, chunk: int, least: float
) -> Iterator[tuple[str, Recognised]]:
    if decoder.lang.topology.kind == "two_pdf":
        raise ValueError("blank_skip needs a topology with a blank, which two_pdf has not; set it to 0")
    pairs = list(utterances)
    kept = {name: without_blanks(log_probs, least) for name, log_probs in pairs}
    fewer = ((name, log_probs[kept[name]]) for name, log_probs in pairs)
    for name, found in recognise(decoder, fewer, 1.0, chunk):  # times are numbers of frames
        words = (_moved(word, kept[name], frame) for word in found.words)
        yield name, replace(found, words=tuple(words))


def _moved(word: Word, kept: np.ndarray, frame: float) -> Word:
    start, end = int(kept[int(word.start)]), int(kept[int(word.end) - 1]) + 1
    return replace(word, start=round(start * frame, 3), end=round(end * frame, 3))
