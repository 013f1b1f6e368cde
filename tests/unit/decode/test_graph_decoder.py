"""Graph decoding against enumeration of all paths; what the words, units and flags of a path say."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import kaldi_decoder
import kaldialign
import kaldifst
import numpy as np
import pytest
import torch

from distill.decode.graph_decoder import GraphDecoder, Hypothesis, decode_all, oracle_errors
from distill.fsa.lattice import Lattice, Search
from distill.graphs.decoding_graph import build_hlg
from distill.graphs.topology import Topology, monophones
from distill.lfmmi import NativeEngine
from distill.search.determinise import determinised
from tests.support.decoding import SENTENCES, Small, best_paths, make_small, random_log_probs, ranked_words, spoken

FRAMES = 6
TOLERANCE = 5e-3  # the decoding graph's weights are rounded to 1/1024, the ARPA file's to six digits
WIDE = Search(beam=200.0, lattice_beam=200.0, max_active=10**6)


def decoder(small: Small, search: Search = WIDE, acoustic_scale: float = 1.0) -> GraphDecoder:
    return GraphDecoder(NativeEngine(), small.hlg, small.lang, search, acoustic_scale)


def best_path(small: Small, log_probs: np.ndarray, acoustic_scale: float = 1.0) -> Hypothesis:
    ((_, found),) = best_paths(decoder(small, acoustic_scale=acoustic_scale), [("one", log_probs)])
    return found


def lattice(small: Small, log_probs: np.ndarray) -> Lattice:
    return decoder(small).lattices([log_probs])[0]


@pytest.mark.parametrize("seed", range(6))
def test_best_path_is_the_best_of_all_paths(small: Small, seed: int) -> None:
    log_probs = random_log_probs(seed, FRAMES, len(small.lang.units))
    score, units, words = small.ranked(log_probs)[0]
    found = best_path(small, log_probs)
    assert found.score == pytest.approx(score, abs=TOLERANCE)
    assert found.units == units
    assert found.words in words
    assert found.complete
    assert found.graph == pytest.approx(small.unit_sequences(FRAMES)[units][0], abs=TOLERANCE)


@pytest.mark.parametrize("order", [2, 4])
def test_other_orders_of_the_word_ngram(tmp_path: Path, order: int) -> None:
    graph = make_small(tmp_path, "BE B\nBEE B\nAB A B\nA A\n", SENTENCES[:2] + SENTENCES[3:4] + ["AB A BEE"], order)
    for seed in range(3):
        log_probs = random_log_probs(seed, FRAMES, len(graph.lang.units))
        found = best_path(graph, log_probs)
        assert found.score == pytest.approx(graph.ranked(log_probs)[0][0], abs=TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_unit_lattice_has_all_sequences_with_their_best_scores(small: Small, seed: int) -> None:
    log_probs = random_log_probs(seed, FRAMES, len(small.lang.units))
    expected = {units: score for score, units, _ in small.ranked(log_probs)}
    graph = determinised(lattice(small, log_probs), decoder(small).new_unit, 200.0)
    found = {units: sum(graph.best) + score for units, score in graph.ranked()}
    assert found == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_nbest_are_the_best_word_sequences(small: Small, seed: int) -> None:
    log_probs = random_log_probs(seed, FRAMES, len(small.lang.units))
    expected = small.ranked_words(log_probs)
    found = ranked_words(decoder(small), lattice(small, log_probs), 12, 200.0)
    assert len(found) == 12 == len({words for words, _ in found})
    assert [score for _, score in found] == pytest.approx([score for _, score in expected[:12]], abs=TOLERANCE)
    for words, score in found:
        assert score == pytest.approx(dict(expected)[words], abs=TOLERANCE)


def test_lattice_beam_bounds_the_list(small: Small) -> None:
    log_probs = random_log_probs(1, FRAMES, len(small.lang.units))
    ranked = small.ranked(log_probs)
    scores = [score for score, *_ in ranked]
    graph = determinised(lattice(small, log_probs), decoder(small).new_unit, 3.0)
    within = sum(score > scores[0] - 3.0 for score in scores)
    assert 5 < within < len(scores)
    assert min(abs(score - scores[0] + 3.0) for score in scores) > TOLERANCE  # no doubt at the edge
    assert {units for units, score in graph.ranked() if score >= -3.0} == {units for _, units, _ in ranked[:within]}


def test_silence_repeats_and_homophones(small: Small) -> None:
    ids, columns = small.lang.tokens, len(small.lang.units)
    sil, a, b = ids["SIL"], ids["A"], ids["B"]
    # "BE BE" needs a blank between its two B; "A BEE" and "A BE A" tell the homophones apart
    found = best_path(small, spoken([sil, b, 0, b, sil], columns))
    assert (found.words, found.units) == (("BE", "BE"), (sil, b, b, sil))
    assert best_path(small, spoken([a, sil, b, 0, sil], columns)).words == ("A", "BEE")
    found = best_path(small, spoken([a, sil, b, sil, a, sil], columns))
    assert (found.words, found.units) == (("A", "BE", "A"), (a, sil, b, sil, a, sil))


def test_silence_alone_gives_no_words(small: Small) -> None:
    found = best_path(small, spoken([0, small.lang.silence, 0], len(small.lang.units), repeat=4))
    assert (found.words, found.units, found.complete) == ((), (small.lang.silence,), True)


def test_unfinished_paths_are_kept_and_marked(tmp_path: Path) -> None:
    graph = make_small(tmp_path, "BOB B A B\n", ["BOB"], 2)
    ids, columns = graph.lang.tokens, len(graph.lang.units)
    begun = np.full((4, columns), -np.inf, dtype=np.float32)
    begun[:2, ids["B"]] = begun[2:, ids["A"]] = 0.0
    found = best_path(graph, begun)
    assert (found.complete, found.units, found.words) == (False, (ids["B"], ids["A"]), ("BOB",))


def test_no_frames_no_path(small: Small) -> None:
    nothing = np.zeros((0, len(small.lang.units)), dtype=np.float32)
    assert not best_path(small, nothing).complete
    assert ranked_words(decoder(small), lattice(small, nothing), 5, 6.0) == [((), 0.0)]
    assert decoder(small).lattices([]) == []


def test_acoustic_scale(small: Small) -> None:
    log_probs = random_log_probs(2, FRAMES, len(small.lang.units))
    found = best_path(small, log_probs, acoustic_scale=0.5)
    assert found.score == pytest.approx(small.ranked(log_probs * 0.5)[0][0], abs=TOLERANCE)


@pytest.mark.parametrize("beam", [15.0, 4.0])
def test_best_paths_are_kaldi_decoders(small: Small, beam: float) -> None:
    utterances = {f"u{seed}": random_log_probs(seed, 40, len(small.lang.units)) for seed in range(20)}
    graph = kaldifst.StdVectorFst.read(str(small.hlg))
    kaldi = kaldi_decoder.FasterDecoder(graph, kaldi_decoder.FasterDecoderOptions(beam=beam, max_active=2000))
    for name, found in best_paths(decoder(small, Search(beam)), utterances.items()):
        kaldi.decode(kaldi_decoder.DecodableCtc(utterances[name]))
        assert found.complete == kaldi.reached_final()
        _, path = kaldi.get_best_path(use_final_probs=found.complete)
        _, _, words, cost = kaldifst.get_linear_symbol_sequence(path)
        assert found.words == tuple(small.words[word] for word in words)
        assert (found.graph, found.acoustic) == pytest.approx((-cost.value1, -cost.value2), abs=1e-3)


def test_results_do_not_depend_on_threads_or_batches(small: Small) -> None:
    utterances = {f"u{seed}": random_log_probs(seed, 20 + seed, len(small.lang.units)) for seed in range(40)}
    work = decoder(small, Search())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = list(decode_all(work, lambda name, found: (name, work.best(found)), utterances.items()))
    finally:
        torch.set_num_threads(threads)
    assert [name for name, _ in together] == list(utterances) and all(name == said for name, (said, _) in together)
    for name, (_, found) in together:
        assert found == work.best(work.lattices([utterances[name]])[0])


def tied_biphones(units: int) -> Topology:
    """Two contexts for each unit: after an even unit (or nothing), and after an odd one; the last unit has one."""
    classes = np.full((units, units), -1)
    for left, unit in itertools.product(range(units), range(1, units)):
        classes[left, unit] = 2 * (unit - 1) + (left % 2 if unit < units - 1 else 0)
    return Topology("two_pdf", classes)


def shared(units: int) -> Topology:
    """The first two units share their output."""
    return Topology("ctc", np.maximum(np.arange(-1, units - 1) - 1, np.minimum(np.arange(-1, units - 1), 0))[None])


@pytest.mark.parametrize("kind", ["ctc_compact", "two_pdf", "biphones", "shared"])
def test_other_topologies_say_units_that_spell_the_words(small: Small, tmp_path: Path, kind: str) -> None:
    units = len(small.lang.tokens)
    made = {"biphones": tied_biphones(units), "shared": shared(units)}
    topology = made[kind] if kind in made else monophones(kind, units)
    lang, folder = replace(small.lang, topology=topology), small.hlg.parent
    build_hlg(lang, folder / "lm.arpa").write(str(tmp_path / "HLG.fst"))
    work = GraphDecoder(NativeEngine(), tmp_path / "HLG.fst", lang, Search(60.0, 60.0, 0))
    known = small.unit_sequences(FRAMES)
    for seed in range(4):
        found = work.lattices([random_log_probs(seed, FRAMES, topology.num_outputs)])[0]
        best = work.best(found)
        assert best.complete
        if kind != "ctc_compact":  # whose repeated outputs may be one unit or two
            assert best.graph == pytest.approx(known[best.units][0], abs=TOLERANCE)
            assert best.words in known[best.units][1]
            assert next(determinised(found, work.new_unit, 1.0).ranked())[0] == best.units


@pytest.mark.parametrize("seed", range(5))
def test_oracle_is_the_fewest_errors_of_any_sequence(small: Small, seed: int) -> None:
    log_probs = random_log_probs(seed, FRAMES, len(small.lang.units))
    words = determinised(lattice(small, log_probs), None, 5.0)
    said = [sequence for sequence, _ in words.ranked()]
    rng = np.random.default_rng(seed)
    for length in range(5):
        reference = rng.integers(-1, len(small.words), length).tolist()
        fewest = min(kaldialign.edit_distance(reference, list(each))["total"] for each in said)
        assert oracle_errors(words, reference) == fewest


def test_missing_graph_names_its_stage(small: Small, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="stage 4"):
        GraphDecoder(NativeEngine(), tmp_path / "HLG.fst", small.lang)


def test_outputs_of_another_lang_folder_are_refused(small: Small) -> None:
    with pytest.raises(ValueError, match="the lang folder has"):
        decoder(small).lattices([np.zeros((3, len(small.lang.units) + 1), dtype=np.float32)])
