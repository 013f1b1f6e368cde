"""The search on a trained model's log-probabilities: kaldi-decoder's best path, and the same however frames come."""

from __future__ import annotations

import logging

import kaldi_decoder
import kaldifst
import numpy as np
import pytest

from distill.decode.graph_decoder import GraphDecoder
from distill.decode.online import OnlineDecoder, OnlineSearch
from distill.decode.recognise import recognise
from distill.fsa.lattice import Search
from distill.lfmmi import NativeEngine
from distill.scoring.wer import score
from tests.real_speech import Real, load_real
from tests.support.decoding import best_paths

FRAME = 0.02


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    return load_real(tmp_path_factory.mktemp("real"))


def decoder(real: Real, search: Search) -> GraphDecoder:
    return GraphDecoder(NativeEngine(), real.hlg, real.lang, search)


@pytest.mark.parametrize("beam", [15.0, 10.0])
def test_best_paths_are_kaldi_decoders(real: Real, beam: float) -> None:
    graph, work = kaldifst.StdVectorFst.read(str(real.hlg)), decoder(real, Search(beam))
    kaldi = kaldi_decoder.FasterDecoder(graph, kaldi_decoder.FasterDecoderOptions(beam=beam, max_active=2000))
    wrong = 0
    for said, (number, found) in zip(real.words, best_paths(work, enumerate(real.log_probs))):
        kaldi.decode(kaldi_decoder.DecodableCtc(real.log_probs[number]))
        assert found.complete == kaldi.reached_final()
        _, path = kaldi.get_best_path(use_final_probs=found.complete)
        _, _, words, cost = kaldifst.get_linear_symbol_sequence(path)
        assert found.words == tuple(work.words[word] for word in words)
        assert (found.graph, found.acoustic) == pytest.approx((-cost.value1, -cost.value2), rel=1e-5)
        wrong += score("", said.split(), found.words).errors
    assert wrong < 0.5 * sum(len(said.split()) for said in real.words)  # a bigram of 300 sentences


@pytest.mark.parametrize("chunk", [1, 16, 48])
def test_streaming_is_offline(real: Real, chunk: int) -> None:
    work = decoder(real, Search(15.0, 6.0))
    stream = OnlineSearch(OnlineDecoder(work, FRAME))
    for log_probs, lattice in zip(real.log_probs, work.lattices(real.log_probs)):
        for start in range(0, len(log_probs), chunk):
            stream.feed(log_probs[start : start + chunk])
        best, found = stream.finish()
        stream.restart()
        assert best == work.best(lattice)
        for name in ("src", "dst", "label", "word", "acoustic", "graph", "frame", "final"):
            np.testing.assert_array_equal(getattr(found, name), getattr(lattice, name))


def test_a_narrow_beam_gives_what_it_has_and_warns(real: Real, caplog: pytest.LogCaptureFixture) -> None:
    cut = real.log_probs[0][: len(real.log_probs[0]) // 2]  # in the middle of a sentence
    narrow = decoder(real, Search(0.5, 0.5, 1))
    with caplog.at_level(logging.WARNING):
        ((_, found),) = list(recognise(narrow, [("half", cut)], FRAME))
    assert found.best.words and not found.best.complete
    assert "such as half" in caplog.text and "partial path" in caplog.text and "beam of more than 0.5" in caplog.text
    caplog.clear()
    assert all(found.best.complete for _, found in recognise(decoder(real, Search()), enumerate(real.log_probs), FRAME))
    assert not caplog.records
