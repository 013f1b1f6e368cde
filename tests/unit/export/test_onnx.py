"""ONNX files against torch: fp32 to 1e-3, int8 close, batches of streams at different places."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'deploy' is not installed")
onnx = pytest.importorskip("onnx", reason="the extra 'deploy' is not installed")

from distill.config.model import FrontEnd  # noqa: E402
from distill.export import onnx as exporting  # noqa: E402
from distill.export.network import StreamGraph, WholeGraph, windows  # noqa: E402
from distill.export.quantise import quantise  # noqa: E402
from distill.runtime.onnx_runner import load_graph  # noqa: E402
from distill.runtime.open import open_session  # noqa: E402
from distill.runtime.torch_runner import info_of  # noqa: E402
from tests.support.models import CHUNK, MODELS, OUTPUTS, build  # noqa: E402
from tests.unit.runtime.test_session import forward, in_pieces, speech, torch_session  # noqa: E402


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Every model of conftest, exported once: name -> (model, experiment folder)."""
    made = {}
    for name, settings in MODELS.items():
        model, folder = build(*settings), tmp_path_factory.mktemp(name.replace(" ", "_"))
        (folder / "export").mkdir()
        info = info_of(model, OUTPUTS, name)
        (folder / "export" / "export.json").write_text(json.dumps({"model": info.resolved()}))
        exporting.export_whole(model, folder / "export" / "whole.onnx")
        if info.chunk_frames:
            exporting.export_stream(model, folder / "export" / "stream.onnx")
        for source in list((folder / "export").glob("*.onnx")):
            quantise(source, source.with_suffix(".int8.onnx"))
        made[name] = (model, folder)
    return made


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("samples", [1, 700, 9000, 20000])
def test_fp32_gives_what_torch_gives(exported: dict, name: str, samples: int) -> None:
    model, folder = exported[name]
    wave = speech(samples)
    expected = forward(model, wave)
    for mode in ("streaming", "offline") if model.settings.streaming.chunk_frames else ("offline",):
        session = open_session(folder, "onnx", mode)
        for cuts in ([], [100, 401, 5000]):
            got = in_pieces(session, wave, cuts)
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-3, err_msg=mode)


@pytest.mark.parametrize("name", MODELS)
def test_int8_stays_close(exported: dict, name: str) -> None:
    model, folder = exported[name]
    wave = speech(20000)
    expected, got = np.exp(forward(model, wave)), np.exp(open_session(folder, "int8").whole(wave))
    assert np.abs(got - expected).sum(1).mean() < 0.4, "mean distance of distributions; 2 is the most there can be"
    kinds = {node.op_type for node in onnx.load(str(folder / "export" / "whole.int8.onnx")).graph.node}
    assert "MatMulInteger" in kinds


@pytest.mark.parametrize("name", MODELS)
def test_int8_keeps_the_first_convolution_and_the_head_alone_in_fp32(exported: dict, name: str) -> None:
    for path in (exported[name][1] / "export").glob("*.int8.onnx"):
        graph = onnx.load(str(path)).graph
        weights = {tensor.name for tensor in graph.initializer}
        products = [n for n in graph.node if n.op_type in ("MatMul", "Gemm") and weights & {*n.input}]
        assert all("/frames/layers.0/" in n.name or "/head/" in n.name for n in products)


@pytest.mark.parametrize("name", ["waveform", "conformer waveform"])
def test_streams_of_a_batch_do_not_hear_each_other(exported: dict, name: str) -> None:
    """Two streams at different places in one call give what each gives alone."""
    model, _ = exported[name]
    graph = StreamGraph(model)
    torch.manual_seed(0)
    past, positions = graph.initial_past(2), torch.randn(2, 5, 16)
    for state in (state for block in past for state in block):
        state.normal_()
    x, valid, processed = torch.randn(2, graph.input_size, 1), torch.tensor([CHUNK, 3]), torch.tensor([8, 40])
    together = graph(x, valid, processed, positions, past)[0]
    for b in range(2):
        one = slice(b, b + 1)
        alone = graph(x[one], valid[one], processed[one], positions[one], [type(p)(*(t[one] for t in p)) for p in past])
        torch.testing.assert_close(together[one, : valid[b]], alone[0][:, : valid[b]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["fbank", "many sinks"])
def test_a_stream_costs_its_audio_and_no_more(exported: dict, name: str, monkeypatch) -> None:
    """Rings grow to the history and stay there, the last frames are a run of their own size; both begin anew."""
    _, folder = exported[name]
    session = open_session(folder, "onnx")
    info, graph, runs = session.info, session.runner.batches._graph, []
    chunk, history = info.chunk_frames, info.model.streaming.history_frames

    class Spy:
        def run(self, outputs: list | None, feed: dict) -> list:
            found = graph.run(outputs, feed)
            runs.append((found[0].shape[1], feed["keys_0"].shape[2] - info.model.streaming.sink_frames))
            return found

    monkeypatch.setattr(session.runner.batches, "_graph", Spy())
    for samples in (30000, 20000):
        runs.clear()
        frames = len(session.whole(speech(samples)))
        starts = range(0, frames, chunk)
        assert frames % chunk and frames > chunk + history, "the case is one with a rest"
        assert [now for now, _ in runs] == [min(chunk, frames - start) for start in starts]
        assert [past for _, past in runs] == [min(max(start, chunk), history) for start in starts]


@pytest.mark.parametrize("name", ["fbank", "conformer"])
def test_padding_changes_no_frame_of_a_batch(name: str) -> None:
    graph = WholeGraph(build(*MODELS[name]))
    torch.manual_seed(0)
    x, lens = torch.randn(2, 90, 80), torch.tensor([90, 51])
    lengths = graph.settings.front_end.frames_of_inputs(lens)
    alone = graph(x[1:, :51], lengths[1:])[0]
    torch.testing.assert_close(graph(x, lengths)[1, : lengths[1]], alone[: lengths[1]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(10, 5), (3, 2), (2, 2), (8, 4), (7, 3), (1, 1), (5, 1), (160, 20)])
def test_windows_are_those_of_a_convolution(kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    x, conv = torch.randn(2, 391, 3), torch.nn.Conv1d(3, 4, kernel, stride, bias=False)
    weight = conv.weight.transpose(1, 2).flatten(1)
    ours = windows(x, kernel, stride) @ weight.T
    torch.testing.assert_close(ours, conv(x.transpose(1, 2)).transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_exported_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="full context"):
        exporting.export_stream(build(*MODELS["offline"]), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="fbank"):
        exporting.export_zipformer(build(*MODELS["waveform"]), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match=r"streaming\.sink_frames: 11"):
        exporting.export_zipformer(build(*MODELS["many sinks"]), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="second, CTC output"):
        exporting.export_whole(build(*MODELS["waveform"]), tmp_path / "x.onnx", "ctc")
    whisper = FrontEnd(
        input="log_mel", layers=((16, 3, 1), (16, 3, 2)), norm="frame", norm_layers="none", waveform="none"
    )
    with pytest.raises(ValueError, match=r"no graph of a model with front_end\.input: log_mel"):
        exporting.export_whole(build(whisper, False), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_cut_short_is_named(tmp_path) -> None:
    path = tmp_path / "stream.onnx"
    exporting.export_stream(build(*MODELS["fbank"]), path)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"stream\.onnx is no graph that ONNX Runtime can load .*run stage 12 again"):
        load_graph(path)


def test_torch_and_onnx_sessions_agree_on_the_model(exported: dict) -> None:
    model, folder = exported["gabor"]
    assert open_session(folder, "onnx").info.resolved() == torch_session(model).info.resolved() | {"name": "gabor"}
