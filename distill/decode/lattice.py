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

from distill.decode.greedy import BLANK, collapse

log = logging.getLogger(__name__)

SPARE_PATHS = 4  # paths looked at per sequence wanted: homophones and the places of words give doubles
MOST_STATES = 1_000_000  # of a determinised lattice


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
        for units, words, score in _sequences(lattice, count * SPARE_PATHS):
            names = tuple(self.words[word] for word in words)
            distinct.setdefault(units, Hypothesis(names, units, score, True))
        # The lattice keeps arcs, not paths: arcs of good paths also join to paths beyond its beam.
        least = max((h.score for h in distinct.values()), default=0.0) - lattice_beam
        return [h for h in distinct.values() if h.score >= least][:count]

    def _decodable(self, log_probs: np.ndarray) -> kaldi_decoder.DecodableCtc:
        return kaldi_decoder.DecodableCtc(np.ascontiguousarray(log_probs * self.acoustic_scale, dtype=np.float32))

    def _hypothesis(self, path: kaldifst.Lattice, complete: bool) -> Hypothesis:
        _, labels, outputs, cost = kaldifst.get_linear_symbol_sequence(path)
        units = tuple(collapse([label - 1 for label in labels]))
        words = tuple(self.words[output] for output in outputs)
        return Hypothesis(words, units, -(cost.value1 + cost.value2), complete)


Symbols = tuple[int, int]  # a unit and a word that stand on one arc, 0 for none


def _sequences(lattice: kaldifst.Lattice, count: int) -> list[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """(units, words, score) of the best paths of a raw lattice, best first, alignments collapsed.

    Nearly all of a lattice's paths differ in their frames only (300 held 3 word sequences), so the
    lattice is determinised over what its paths say before the best are taken.
    """
    graph, symbols = _collapsed(lattice)
    if kaldifst.determinize_star(graph, max_states=MOST_STATES):
        raise ValueError(f"a lattice has over {MOST_STATES} states when determinised; choose a smaller lattice beam")
    found = []
    for path in kaldifst.convert_nbest_to_vector(kaldifst.shortest_path(graph, n=count)):
        _, labels, _, cost = kaldifst.get_linear_symbol_sequence(path)
        units, words = zip(*(symbols[label] for label in labels)) if labels else ((), ())
        found.append((tuple(u for u in units if u), tuple(w for w in words if w), -cost.value))
    return sorted(found, key=lambda item: -item[2])


def _collapsed(lattice: kaldifst.Lattice) -> tuple[kaldifst.StdVectorFst, dict[int, Symbols]]:
    """Acceptor of what the paths of a lattice say (CTC repeats and blanks gone), and the meaning of its labels."""
    arcs, final, start = _parse(lattice.to_str())
    labels: dict[Symbols, int] = {(0, 0): 0}
    states = {(start, BLANK): 0}
    queue = [(start, BLANK)]
    lines = []
    for source, heard in queue:
        here = states[source, heard]
        if source in final:
            lines.append(f"{here} {final[source]}")
        for target, column, word, cost in arcs.get(source, ()):
            unit = heard if column == 0 else column - 1  # column 0: an arc that takes no frame
            new = unit if unit != heard else BLANK
            label = labels.setdefault((new, word), len(labels))
            if (target, unit) not in states:
                states[target, unit] = len(states)
                queue.append((target, unit))
            lines.append(f"{here} {states[target, unit]} {label} {cost}")
    graph = kaldifst.compile("\n".join(lines) + "\n", acceptor=True)
    return graph, {label: symbols for symbols, label in labels.items()}


def _parse(text: str) -> tuple[dict[int, list[tuple[int, int, int, float]]], dict[int, float], int]:
    """OpenFst's text of a lattice: arcs (target, input, output, cost) by source, final costs, start state."""
    arcs: dict[int, list[tuple[int, int, int, float]]] = {}
    final: dict[int, float] = {}
    start = -1
    for line in text.splitlines():
        state, *fields = line.split()
        start = int(state) if start < 0 else start
        cost = sum(map(float, fields[-1].split(","))) if len(fields) in (1, 4) else 0.0
        if len(fields) < 3:
            final[int(state)] = cost
        else:
            arcs.setdefault(int(state), []).append((int(fields[0]), int(fields[1]), int(fields[2]), cost))
    return arcs, final, start


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
