"""Streams of different ages in one forward give what each gives alone; which runtime is taken."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.runtime.open import open_batches, preferred
from distill.runtime.runner import BatchRunner, ChunkRequest
from distill.runtime.session import Session
from distill.runtime.torch_runner import TorchBatches, info_of, torch_runner
from tests.support.models import GABOR, MODELS, OUTPUTS, build


def speech(samples: int, seed: int) -> np.ndarray:
    return (0.2 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def together(runner: BatchRunner, waves: list[np.ndarray], arrivals: list[int]) -> list[np.ndarray]:
    """All streams through the runner; stream i arrives at round arrivals[i], and takes a chunk each round."""
    states = [runner.open() for _ in waves]
    heard: list[list[np.ndarray]] = [[] for _ in waves]
    position, done, now = [0] * len(waves), [False] * len(waves), 0
    while not all(done):
        pieces, members = [], []
        for i, wave in enumerate(waves):
            if done[i] or now < arrivals[i]:
                continue
            new = wave[position[i] : position[i] + runner.needs(position[i] > 0)]
            done[i] = len(new) < runner.needs(position[i] > 0)
            position[i] += len(new)
            pieces.append(ChunkRequest(states[i], new, done[i]))
            members.append(i)
        for i, (log_probs, state) in zip(members, runner.step(pieces)):
            heard[i].append(log_probs)
            states[i] = state
        now += 1
    return [np.concatenate(each) for each in heard]


@pytest.mark.parametrize("name", [name for name, (_, streams, *_) in MODELS.items() if streams])
def test_a_stream_in_a_batch_is_as_alone(name: str) -> None:
    model = build(*MODELS[name])
    info = info_of(model, OUTPUTS, name)
    waves = [speech(n, seed) for seed, n in enumerate((9000, 1, 20011, 5120, 12345, 159, 7000))]
    found = together(TorchBatches(model, info), waves, [0, 0, 1, 3, 3, 4, 7])
    alone = Session(torch_runner(model, info, True))
    for wave, log_probs in zip(waves, found):
        np.testing.assert_allclose(log_probs, alone.whole(wave), rtol=0, atol=1e-4)
    assert found[2].std() > 0.1


def test_sinks_and_unequal_memories() -> None:
    model = build(GABOR, True)
    model.settings = model.settings.model_copy(
        update={"streaming": model.settings.streaming.model_copy(update={"sink_frames": 3})}
    )
    info = info_of(model, OUTPUTS, "sinks")
    waves = [speech(n, seed) for seed, n in enumerate((9000, 20000, 12000))]
    found = together(TorchBatches(model, info), waves, [0, 1, 4])
    alone = Session(torch_runner(model, info, True))
    for wave, log_probs in zip(waves, found):
        np.testing.assert_allclose(log_probs, alone.whole(wave), rtol=0, atol=1e-4)


def test_a_model_with_full_context_is_refused() -> None:
    model = build(*MODELS["offline"])
    with pytest.raises(ValueError, match="cannot stream"):
        TorchBatches(model, info_of(model, OUTPUTS, "offline"))


def export(name: str, folder: Path) -> Any:
    """An export folder of a model of conftest, and the model."""
    exporting = pytest.importorskip("distill.export.onnx", reason="the extra 'deploy' is not installed")
    model = build(*MODELS[name])
    (folder / "export").mkdir()
    content = {"model": info_of(model, OUTPUTS, name).resolved()}
    (folder / "export" / "export.json").write_text(json.dumps(content), encoding="utf-8")
    exporting.export_stream(model, folder / "export" / "stream.onnx")
    return model


@pytest.mark.parametrize("name", [name for name, (_, streams, *_) in MODELS.items() if streams])
def test_a_stream_in_a_batch_of_the_exported_graph_is_as_alone_in_torch(name: str, tmp_path: Path) -> None:
    model = export(name, tmp_path)
    waves = [speech(n, seed) for seed, n in enumerate((9000, 1, 20011, 5120, 12345, 159, 7000))]
    found = together(open_batches(tmp_path), waves, [0, 0, 1, 3, 3, 4, 7])
    alone = Session(torch_runner(model, info_of(model, OUTPUTS, name), True))
    for wave, log_probs in zip(waves, found):
        np.testing.assert_allclose(log_probs, alone.whole(wave), rtol=0, atol=1e-3)
    assert found[2].std() > 0.1


def test_a_forward_that_failed_can_be_repeated(tmp_path: Path) -> None:
    export("waveform", tmp_path)
    wave, runner = speech(9000, 0), open_batches(tmp_path)
    whole = together(runner, [wave], [0])[0]
    run, calls = runner._forward, []  # type: ignore[attr-defined]

    def sometimes(streams: Any) -> Any:
        calls.append(len(streams))
        if len(calls) % 2:
            raise MemoryError
        return run(streams)

    def persistent(pieces: list[ChunkRequest]) -> Any:
        try:
            return step(pieces)
        except MemoryError:
            return step(pieces)

    step = runner.step
    runner._forward, runner.step = sometimes, persistent  # type: ignore[attr-defined, method-assign, assignment]
    np.testing.assert_array_equal(together(runner, [wave], [0])[0], whole)
    assert len(calls) > 2


def test_the_faster_runtime_is_taken_where_it_is_up_to_date(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "epoch-1.pt").touch()
    assert preferred(tmp_path) == "torch" and "has no export" in caplog.text
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "export.json").touch()
    assert preferred(tmp_path) == "onnx" and preferred(tmp_path / "export") == "onnx"
    os.utime(tmp_path / "export" / "export.json", (0, 0))
    assert preferred(tmp_path) == "torch" and "older than the checkpoint" in caplog.text
    with pytest.raises(ValueError, match="expected torch, onnx or int8"):
        open_batches(tmp_path, "tensorrt")


def test_an_offline_export_is_refused(tmp_path: Path) -> None:
    model = build(*MODELS["offline"])
    content = {"model": info_of(model, OUTPUTS, "offline").resolved()}
    (tmp_path / "export.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="cannot stream"):
        open_batches(tmp_path)
