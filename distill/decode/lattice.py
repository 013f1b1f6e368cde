"""Graph decoding of whole utterances: the best words over HLG, and n-best unit sequences for numerators."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import kaldi_decoder
import kaldifst
import numpy as np

from distill.decode.greedy import collapse

log = logging.getLogger(__name__)

LATTICE_PATHS = 10  # alignments looked at per distinct sequence wanted: most differ in their frames only


@dataclass(frozen=True)
class Hypothesis:
    """words and unit ids (silence included) of a path, its score (log, acoustic and graph together).

    complete: whether the path ends in a final state; a beam too narrow leaves it short of one.
    """

    words: tuple[str, ...]
    units: tuple[int, ...]
    score: float
    complete: bool


class GraphDecoder:
    """Viterbi beam search over HLG with kaldi-decoder.

    beam: costs beyond the best that are kept. max_active: states kept per frame. acoustic_scale
    multiplies the log-probabilities.
    """

    def __init__(
        self, hlg: Path, words: Iterable[str], beam: float = 15.0, max_active: int = 2000, acoustic_scale: float = 1.0
    ) -> None:
        if not hlg.is_file():
            raise FileNotFoundError(f"no decoding graph at {hlg}; stage 4 writes it (run.sh --stage 4 --stop-stage 4)")
        self.graph = kaldifst.StdVectorFst.read(str(hlg))
        self.words = list(words)
        self.beam, self.max_active, self.acoustic_scale = beam, max_active, acoustic_scale
        options = kaldi_decoder.FasterDecoderOptions(beam=beam, max_active=max_active)
        self._decoder = kaldi_decoder.FasterDecoder(self.graph, options)

    def best_path(self, log_probs: np.ndarray) -> Hypothesis:
        """log_probs (T, V) -> the best path; words are empty where there are no frames."""
        if not len(log_probs):
            return Hypothesis((), (), 0.0, False)
        self._decoder.decode(self._decodable(log_probs))
        complete = self._decoder.reached_final()
        found, path = self._decoder.get_best_path(use_final_probs=complete)
        if not found:
            return Hypothesis((), (), 0.0, False)
        return self._hypothesis(path, complete)

    def nbest(self, log_probs: np.ndarray, count: int, lattice_beam: float) -> list[Hypothesis]:
        """Up to `count` distinct unit sequences within `lattice_beam` of the best, best first.

        log_probs (T, V). Empty where no path ends in a final state.
        """
        if not len(log_probs):
            return []
        options = kaldi_decoder.LatticeSimpleDecoderConfig(beam=self.beam, lattice_beam=lattice_beam)
        decoder = kaldi_decoder.LatticeSimpleDecoder(self.graph, options)
        if not decoder.decode(self._decodable(log_probs)) or not np.isfinite(decoder.final_relative_cost()):
            return []
        found, lattice = decoder.get_raw_lattice()
        if not found:
            return []
        distinct: dict[tuple[int, ...], Hypothesis] = {}
        for path in kaldifst.lattice_to_nbest(lattice, n=count * LATTICE_PATHS):
            hypothesis = self._hypothesis(path, True)
            distinct.setdefault(hypothesis.units, hypothesis)
        return list(distinct.values())[:count]

    def _decodable(self, log_probs: np.ndarray) -> kaldi_decoder.DecodableCtc:
        return kaldi_decoder.DecodableCtc(np.ascontiguousarray(log_probs * self.acoustic_scale, dtype=np.float32))

    def _hypothesis(self, path: kaldifst.Lattice, complete: bool) -> Hypothesis:
        _, labels, outputs, cost = kaldifst.get_linear_symbol_sequence(path)
        units = tuple(collapse([label - 1 for label in labels]))
        words = tuple(self.words[output] for output in outputs)
        return Hypothesis(words, units, -(cost.value1 + cost.value2), complete)


_worker: GraphDecoder | None = None  # each decoding process's own


def decode_all(
    make: Callable[[], GraphDecoder],
    work: Callable[[GraphDecoder, np.ndarray], object],
    utterances: Iterable[tuple[str, np.ndarray]],
    jobs: int,
) -> Iterator[tuple[str, object]]:
    """work(decoder, log_probs) for (id, (T, V)) pairs on `jobs` processes; results in the order given.

    `make` and `work` must be importable (module-level functions or functools.partial of such).
    """
    if jobs <= 1:
        decoder = make()
        for name, log_probs in utterances:
            yield name, work(decoder, log_probs)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with context.Pool(jobs, _start, (make,)) as pool:
        yield from pool.imap(_run, ((name, log_probs, work) for name, log_probs in utterances), chunksize=8)


def _start(make: Callable[[], GraphDecoder]) -> None:
    global _worker
    _worker = make()


def _run(item: tuple[str, np.ndarray, Callable]) -> tuple[str, object]:
    name, log_probs, work = item
    assert _worker is not None
    return name, work(_worker, log_probs)


def best_path(decoder: GraphDecoder, log_probs: np.ndarray) -> Hypothesis:
    """`GraphDecoder.best_path` as work for `decode_all`."""
    return decoder.best_path(log_probs)


def nbest(decoder: GraphDecoder, log_probs: np.ndarray, count: int, lattice_beam: float) -> list[Hypothesis]:
    """`GraphDecoder.nbest` as work for `decode_all`."""
    return decoder.nbest(log_probs, count, lattice_beam)
