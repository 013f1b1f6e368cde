"""sherpa-onnx, unmodified, against torch on recordings: the same tokens at the same times, alone and in batches."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import kaldifst
import numpy as np
import pytest
import torch

sherpa_onnx = pytest.importorskip("sherpa_onnx", reason="the extra 'deploy' is not installed")
pytest.importorskip("onnx", reason="the extra 'deploy' is not installed")

from distill.decode.graph_decoder import GraphDecoder  # noqa: E402
from distill.export import onnx as exporting  # noqa: E402
from distill.fsa.lattice import Search  # noqa: E402
from distill.graphs.decoding_graph import over_outputs  # noqa: E402
from distill.graphs.lexicon import write_symbols  # noqa: E402
from distill.lfmmi import NativeEngine  # noqa: E402
from distill.runtime.audio import read_audio  # noqa: E402
from tests.support.decoding import make_small  # noqa: E402
from tests.support.models import CHUNK, MODELS, OUTPUTS, build  # noqa: E402

CORPORA = Path(os.environ.get("CORPORA", Path(__file__).resolve().parents[4] / "shared" / "corpora"))


@pytest.fixture(scope="module")
def recordings() -> list[np.ndarray]:
    """Some recordings of unequal length."""
    found = sorted((CORPORA / "intent" / "wav").rglob("*.flac"))[:40:10]
    if not found:
        pytest.skip("no recordings; set CORPORA to a folder that has intent/wav")
    return [read_audio(path) for path in found]


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    """Utterances without recordings: noise in bursts, of unequal length."""
    generator = np.random.default_rng(0)
    return [
        (np.abs(np.sin(np.arange(n) / 1500)) ** 2 * generator.standard_normal(n)).astype(np.float32) / 4
        for n in (16000, 23000, 31000)
    ]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sherpa") / "tokens.txt"
    write_symbols(path, OUTPUTS)
    return path


def expected(model, wave: np.ndarray, frames: int | None = None) -> tuple[list[str], list[int]]:
    """Greedy tokens and their frames, of the first `frames` frames."""
    with torch.no_grad():
        logits = model(torch.from_numpy(wave)[None], torch.tensor([len(wave)])).logits[0]
    best = [0, *logits[:frames].argmax(1).tolist()]
    new = [i for i in range(1, len(best)) if best[i] not in (0, best[i - 1])]
    return [OUTPUTS[best[i]] for i in new], [i - 1 for i in new]


def stream(recogniser, waves: list[np.ndarray]) -> list:
    """All waves as streams fed in pieces, decoded together."""
    streams = [recogniser.create_stream() for _ in waves]
    for start in range(0, max(map(len, waves)), 4000):
        for s, wave in zip(streams, waves):
            if start < len(wave):
                s.accept_waveform(16000, wave[start : start + 4000])
        while ready := [s for s in streams if recogniser.is_ready(s)]:
            recogniser.decode_streams(ready)
    return streams


@pytest.mark.parametrize("name", ["fbank", "conformer", "pruned conformer", "pruned post-LN"])
def test_fbank_models_stream(tokens: Path, recordings: list[np.ndarray], name: str) -> None:
    model, path = build(*MODELS[name]), tokens.with_name(f"stream.{name}.onnx")
    exporting.export_zipformer(model, path)
    recogniser = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(str(tokens), str(path), num_threads=1)
    assert_streams_as(partial(expected, model), recogniser, recordings)


def assert_streams_as(expected: Callable, recogniser, recordings: list[np.ndarray]) -> None:
    """Alone and side by side; expected: waveform, frames -> units, and the frame of each."""
    waves, found = [np.concatenate([wave, np.zeros(8000, np.float32)]) for wave in recordings], 0
    for group in ([waves[0]], waves):
        for each, wave in zip(stream(recogniser, group), group):
            symbols, places = expected(wave, decoded(wave))
            assert recogniser.tokens(each) == symbols
            np.testing.assert_allclose(recogniser.timestamps(each), [0.04 * i for i in places], atol=1e-4)
            found += len(symbols)
    assert found > 20


def decoded(wave: np.ndarray) -> int:
    """Frames that sherpa-onnx decodes of a stream: of whole chunks."""
    size, shift = (CHUNK - 1) * 4 + 7, CHUNK * 4
    ready = (len(wave) + 80) // 160 - 2  # the last windows wait for audio behind them
    return CHUNK * max(0, (ready - size - 1) // shift + 1)


def test_a_graph_decodes_there_as_here(tmp_path: Path, recordings: list[np.ndarray]) -> None:
    lexicon = "".join(f"{a}{b} {a} {b}\n" for a, b in zip("ABCDEFGHIJ", "CEAGHBJIDF"))
    words = [line.split()[0] for line in lexicon.splitlines()]
    small = make_small(tmp_path, lexicon, [" ".join(words[i::3]) for i in range(3)], 2)
    assert len(small.lang.outputs) == len(OUTPUTS)
    model, path, graph = build(*MODELS["fbank"]), tmp_path / "stream.onnx", tmp_path / "ctc_graph.fst"
    exporting.export_zipformer(model, path)
    columns = small.lang.topology.output_columns
    over_outputs(kaldifst.StdVectorFst.read(str(small.hlg)), columns.tolist()).write(str(graph))
    write_symbols(tmp_path / "outputs.txt", small.lang.outputs)
    recogniser = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
        str(tmp_path / "outputs.txt"), str(path), num_threads=1, ctc_graph=str(graph)
    )
    decoder, heard = GraphDecoder(NativeEngine(), small.hlg, small.lang, Search(16.0, 1.0, 3000)), 0
    for s, wave in zip(stream(recogniser, recordings), recordings):
        with torch.no_grad():
            logits = model(torch.from_numpy(wave)[None], torch.tensor([len(wave)])).logits[0, : decoded(wave)]
        (lattice,) = decoder.lattices([logits.log_softmax(1).numpy()])
        found = tuple(small.words[i] for i in recogniser.get_result_all(s).words)
        assert found == decoder.best(lattice).words
        heard += len(found)
    assert heard > 10


def offline(recogniser, waves: list[np.ndarray]) -> list[list[str]]:
    streams = [recogniser.create_stream() for _ in waves]
    for s, wave in zip(streams, waves):
        s.accept_waveform(16000, wave)
    recogniser.decode_streams(streams)
    return [s.result.tokens for s in streams]


@pytest.mark.parametrize("name", ["fbank", "conformer", "pruned conformer", "pruned post-LN"])
def test_fbank_models_run_whole_utterances(tokens: Path, recordings: list[np.ndarray], name: str) -> None:
    model, path = build(*MODELS[name]), tokens.with_name(f"whole.{name}.onnx")
    exporting.export_whole(model, path)
    recogniser = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(str(path), str(tokens))
    for group in ([recordings[0]], recordings):
        assert offline(recogniser, group) == [expected(model, wave)[0] for wave in group]


@pytest.mark.parametrize("level", [0.002, 0.05, 0.2])
@pytest.mark.parametrize("name", ["offline", "teacher"])
def test_waveform_models_give_our_tokens_at_the_level_that_audio_has(
    tokens: Path, speech: list[np.ndarray], name: str, level: float
) -> None:
    """That runtime normalises each utterance; a stored gain needs the level, which the graph finds again."""
    model, path = build(*MODELS[name]), tokens.with_name(f"{name}.onnx")
    exporting.export_whole(model, path)
    recogniser = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc(str(path), str(tokens))
    waves = [level / wave.std() * (wave - wave.mean()) for wave in speech]  # an offset would be lost there
    ours = [expected(model, wave)[0] for wave in waves]
    assert len({len(found) for found in ours}) > 1
    for group in ([waves[0]], waves):
        assert offline(recogniser, group) == ours[: len(group)]


def test_the_level_decides_what_a_model_with_a_gain_gives(speech: list[np.ndarray]) -> None:
    """Else the test above would show nothing."""
    model = build(*MODELS["offline"])
    quiet, loud = ([expected(model, level * wave)[0] for wave in speech] for level in (0.01, 1.0))
    assert sum(a == b for a, b in zip(quiet, loud)) < len(speech) / 2
