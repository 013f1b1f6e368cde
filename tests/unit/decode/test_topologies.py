"""Decoding under every topology, with and without context, against all labellings of a few frames."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.decode.denominator_path import DenominatorPath
from distill.decode.graph_decoder import GraphDecoder
from distill.fsa.graph import Fsa
from distill.fsa.lattice import Search
from distill.graphs.biphones import count_pairs, tied_left_biphones
from distill.graphs.bpe import PAUSE, char_lexicon, char_symbols
from distill.graphs.decoding_graph import build_hlg
from distill.graphs.lexicon import Lang, Lexicon, write_lang
from distill.graphs.topology import KINDS, Topology, monophones, save_topology
from distill.graphs.unit_ngram import train_unit_ngram
from distill.lfmmi import NativeEngine
from tests.support.decoding import Small, random_log_probs
from tests.support.lang import trained_lm
from tests.unit.graphs.test_topology import CONTEXTS, labellings, make, path_weights, random_graph, sequences

FRAMES = 4
SENTENCES = ["A BE A", "A BEE", "BE BE", "AB A BEE", "A"]
WIDE = Search(beam=200.0, lattice_beam=10.0, max_active=10**6)


def all_labellings(how: Topology, graph: Fsa, log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """Log-weight of every labelling, its paths summed."""
    frames, found = len(log_probs), dict[tuple[int, ...], float]()
    for units in sequences(frames):
        weights = path_weights(graph, units)
        for labels in labellings(how, units, frames) if weights else ():
            score = float(log_probs[range(frames), labels].sum()) + float(np.logaddexp.reduce(weights))
            found[labels] = float(np.logaddexp(found.get(labels, -np.inf), score))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("seed", range(3))
def test_greedy_is_the_path_with_the_largest_sum_of_posteriors(kind: str, context: str, seed: int) -> None:
    how, graph = make(kind, context), random_graph(3, seed)
    log_probs = random_log_probs(seed, FRAMES, how.num_outputs).astype(np.float64)
    weighted = all_labellings(how, graph, log_probs)
    decoder = DenominatorPath(NativeEngine(), how.compose(graph))
    (found,) = decoder.labels([log_probs])
    if not weighted:
        assert len(found) == 0
        return
    total = np.logaddexp.reduce(list(weighted.values()))
    posterior = np.zeros_like(log_probs)
    for labels, weight in weighted.items():
        posterior[range(FRAMES), labels] += math.exp(weight - total)
    gains = {labels: posterior[range(FRAMES), labels].sum() for labels in weighted}
    assert gains[tuple(found.tolist())] == pytest.approx(max(gains.values()), abs=1e-9)
    assert decoder.units(how, [log_probs]) == [how.units(found.tolist())]


def test_greedy_with_a_complete_ngram_is_the_argmax_of_every_frame() -> None:
    how = monophones("ctc", 4)
    den = how.compose(train_unit_ngram([(1, 2, 3), (2, 2)], 3, 4))
    frames = [random_log_probs(seed, 7 + seed, 4) for seed in range(4)]
    for log_probs, found in zip(frames, DenominatorPath(NativeEngine(), den).labels(frames)):
        batch = torch.from_numpy(log_probs)[None].double().requires_grad_()
        NativeEngine().score(batch, torch.tensor([len(log_probs)]), den).total.sum().backward()
        assert batch.grad is not None
        assert batch.grad[0].argmax(1).tolist() == found.tolist()


def test_greedy_of_nothing() -> None:
    how = monophones("two_pdf", 3)
    den = how.compose(Fsa.from_arcs([(0, 1, 1, 0.0), (1, 2, 2, 0.0)], {2: 0.0}, 3))
    frames = [np.zeros((n, how.num_outputs), dtype=np.float32) for n in (0, 1, 2)]  # two units need two frames
    assert DenominatorPath(NativeEngine(), den).units(how, frames) == [[], [], [1, 2]]


def small(units: str, kind: str, context: str, folder: Path) -> Small:
    """A graph of four words in phones or characters, with the topology."""
    (folder / "lexicon.txt").write_text("BE B\nBEE B\nAB A B\nA A\n", encoding="utf-8")
    lexicon = Lexicon.read(folder / "lexicon.txt")
    if units == "chars":
        written = char_lexicon(Lexicon(dict.fromkeys(("A", "AB"), (("x",),))))
        pause = PAUSE if kind == "two_pdf" else None
        write_lang(written, folder, [*char_symbols(written), *([pause] if pause else [])], pause)
    else:
        write_lang(lexicon, folder)
    lang = Lang.load(folder)
    spoken = [tuple(u for w in s.split() for u in lang.pronunciation_ids(w, "")[0]) for s in ("A AB A", "AB A")]
    counts = count_pairs(spoken * 2, len(lang.tokens))
    tied = tied_left_biphones(kind, counts, 3, 2)  # B, or the silence, is so rare that it shares outputs
    contexts = {
        "mono": monophones(kind, len(counts)),
        "biphone": tied_left_biphones(kind, 0 * counts, 0),
        "tied": tied,
    }
    save_topology(contexts[context], folder)
    lang = Lang.load(folder)
    sentences = [s for s in [*SENTENCES, "AB A", "A AB"] if all(w in lang.lexicon.pronunciations for w in s.split())]
    lm = trained_lm(folder, sentences, 3, lang.lexicon.words, least=1)
    build_hlg(lang, folder / "lm.arpa").write(str(folder / "HLG.fst"))
    return Small(folder / "HLG.fst", lang, lm)


@pytest.mark.parametrize("units", ["phones", "chars"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", ["mono", "biphone", "tied"])
def test_graph_decoding_finds_the_best_of_all_labellings(units: str, kind: str, context: str, tmp_path: Path) -> None:
    graph = small(units, kind, context, tmp_path)
    how = graph.lang.topology
    decoder = GraphDecoder(NativeEngine(), graph.hlg, graph.lang, WIDE)
    # `unit_sequences` puts None where a pause could stand: pieces have none, they pause in blank
    said = {units: found for units, found in graph.unit_sequences(FRAMES).items() if None not in units}
    for seed in range(4):
        log_probs = random_log_probs(seed, FRAMES, how.num_outputs)
        scores: dict[tuple[int, ...], float] = {}
        for sequence, (weight, _) in said.items():
            acoustic = [float(log_probs[range(FRAMES), x].sum()) for x in labellings(how, sequence, FRAMES)]
            scores[sequence] = weight + max(acoustic, default=-math.inf)
        best = max(scores, key=scores.__getitem__)
        found = decoder.best(decoder.lattices([log_probs])[0])
        assert found.complete
        assert found.score == pytest.approx(scores[best], abs=5e-3)
        if kind != "ctc_compact":  # there a repeated output may be one unit or two
            assert found.units == best
            assert found.words in said[best][1]
