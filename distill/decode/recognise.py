"""Words of utterances over HLG with times and confidences, from whole utterances or as frames would arrive."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from distill.config.model import BLANK
from distill.decode.graph_decoder import GraphDecoder, Hypothesis, decode_all
from distill.decode.nbest import Candidates, candidates
from distill.decode.online import OnlineDecoder, OnlineSearch
from distill.fsa.lattice import Lattice, Search
from distill.text import Word

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recognition:
    """The best path of an utterance, its words with their times, and its n-best list, if any."""

    best: Hypothesis
    words: tuple[Word, ...]
    candidates: Candidates | None = None


def recognise(
    decoder: GraphDecoder,
    utterances: Iterable[tuple[str, np.ndarray]],
    frame_seconds: float,
    chunk_frames: int = 0,
    blank_skip: float = 0.0,
    nbest: int = 0,
) -> Iterator[tuple[str, Recognition]]:
    """(id, recognition) of (id, (T, V)) pairs, which do not depend on chunk_frames: frames that arrive at once, 0: all.

    blank_skip: search without the frames that `without_blanks` leaves out, 0 for none; scores are then those of the
    frames searched. nbest: length of the lists, from the same lattice, 0 for none. A beam too narrow leaves the best
    partial path of an utterance, or nothing; a warning at the end counts these. Raises ValueError for blank_skip with
    a topology without blank.
    """
    if blank_skip and decoder.lang.topology.kind == "two_pdf":
        raise ValueError("blank_skip needs a topology with a blank, which two_pdf has not; set it to 0")
    online, kept = OnlineDecoder(decoder, frame_seconds), dict[str, np.ndarray]()

    def searched() -> Iterator[tuple[str, np.ndarray]]:
        for name, log_probs in utterances:
            if blank_skip:
                kept[name] = without_blanks(log_probs, blank_skip)
                log_probs = log_probs[kept[name]]
            yield name, log_probs

    def recognition(name: str, lattice: Lattice) -> Recognition:
        words = tuple(online.times.words(lattice, kept=kept.get(name)))
        listed = candidates(decoder, lattice, nbest, decoder.search.lattice_beam) if nbest else None
        return Recognition(decoder.best(lattice), words, listed)

    def streamed(item: tuple[str, np.ndarray]) -> tuple[str, Recognition]:
        name, log_probs = item
        search = OnlineSearch(online)
        for start in range(0, len(log_probs), chunk_frames):
            search.feed(log_probs[start : start + chunk_frames])
        return name, recognition(name, search.finish()[1])

    def streams() -> Iterator[tuple[str, Recognition]]:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            yield from pool.map(streamed, searched())

    results = streams() if chunk_frames else decode_all(decoder, recognition, searched())
    return _with_warning(results, decoder.search)


def _with_warning(recognitions: Iterable[tuple[str, Recognition]], search: Search) -> Iterator[tuple[str, Recognition]]:
    """The same pairs; at the end a warning counts those whose best path stops short of a final state."""
    partial: list[str] = []
    for name, result in recognitions:
        if not result.best.complete:
            partial.append(name)
        yield name, result
    if partial:
        log.warning(
            "%d utterances, such as %s, ended outside a final state: their best partial path counts; a beam of more"
            " than %g (max_active of more than %d) may give whole ones",
            len(partial), partial[0], search.beam, search.max_active,
        )  # fmt: skip


def without_blanks(log_probs: np.ndarray, threshold: float) -> np.ndarray:
    """Frames to search, (T, V) -> (K,): in a run of blanks with at least this probability only the first.

    One blank must stay, as it separates equal units. The choice depends on a frame and the one before it alone.
    """
    blank = log_probs[:, BLANK] >= np.log(threshold)
    repeated = np.concatenate([[False], blank[:-1]])
    return np.flatnonzero(~(blank & repeated))
