"""Transducers in sherpa-onnx, unmodified, against ours on recordings: the same units at the same times."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
import torch

sherpa_onnx = pytest.importorskip("sherpa_onnx", reason="the extra 'deploy' is not installed")
pytest.importorskip("onnx", reason="the extra 'deploy' is not installed")

from distill.config.model import Transducer  # noqa: E402
from distill.decode.transducer import Greedy, with_penalty  # noqa: E402
from distill.export import onnx as exporting  # noqa: E402
from distill.export.quantise import quantise  # noqa: E402
from distill.models.recogniser import Recogniser  # noqa: E402
from distill.recipe.exporting import check_graphs, write_graphs  # noqa: E402
from distill.runtime.torch_runner import TorchNetwork, info_of  # noqa: E402
from tests.support.models import MODELS, OUTPUTS, build  # noqa: E402
from tests.unit.export.test_sherpa import assert_streams_as, offline, recordings, speech, stream, tokens  # noqa: E402, F401

if TYPE_CHECKING:
    from distill.recipe.options import Recipe

KINDS = [("fbank", 1, 0), ("fbank", 2, 0), ("conformer", 2, 0), ("pruned conformer", 2, 1), ("pruned post-LN", 2, 0)]


def with_transducer(name: str, settings: Transducer | None, seed: int = 0) -> Recogniser:
    """A model of those that are deployed with a transducer of lively weights."""
    model = build(*MODELS[name])
    torch.manual_seed(seed)
    both = Recogniser(model.settings.model_copy(update={"transducer": settings}), len(OUTPUTS)).eval()
    both.load_state_dict({**both.state_dict(), **model.state_dict()})
    assert both.transducer is not None
    with torch.no_grad():
        for parameter in both.transducer.parameters():
            parameter.mul_(4)
    return both


def exported(model: Recogniser, folder: Path, streams: bool) -> dict[str, str]:
    """Paths of the three graphs by the names of sherpa-onnx's arguments."""
    paths = {kind: folder / f"{kind}.onnx" for kind in ("encoder", "decoder", "joiner")}
    write = exporting.export_zipformer if streams else exporting.export_whole
    write(model, paths["encoder"], "transducer")
    exporting.export_joiner(model, paths["decoder"], paths["joiner"])
    return {kind: str(path) for kind, path in paths.items()}


def expected(
    model: Recogniser, wave: np.ndarray, frames: int | None = None, penalty: float = 0
) -> tuple[list[str], list[int]]:
    """Greedy units and their frames, of the first `frames` frames."""
    assert model.transducer is not None
    search = Greedy(with_penalty(TorchNetwork(model.transducer), penalty))
    with torch.no_grad():
        joint = model(torch.from_numpy(wave)[None], torch.tensor([len(wave)])).joint
    search.feed(joint.frames[0, :frames].numpy())
    return [OUTPUTS[unit] for unit in search.units], search.frames


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Recogniser:
    name, context, seed = request.param
    return with_transducer(name, Transducer(context=context, dim=8, joiner_dim=12), seed)


def test_transducers_stream(
    tokens: Path, recordings: list[np.ndarray], tmp_path: Path, model: Recogniser  # noqa: F811
) -> None:  # fmt: skip
    paths = exported(model, tmp_path, True)
    for penalty in (0.0, 1.5):
        recogniser = sherpa_onnx.OnlineRecognizer.from_transducer(
            str(tokens), **paths, num_threads=1, blank_penalty=penalty
        )
        assert_streams_as(partial(expected, model, penalty=penalty), recogniser, recordings)


def test_transducers_run_whole_utterances(
    tokens: Path, recordings: list[np.ndarray], tmp_path: Path, model: Recogniser  # noqa: F811
) -> None:  # fmt: skip
    paths = exported(model, tmp_path, False)
    for penalty in (0.0, 1.5):
        recogniser = sherpa_onnx.OfflineRecognizer.from_transducer(**paths, tokens=str(tokens), blank_penalty=penalty)
        for group in ([recordings[0]], recordings):
            assert offline(recogniser, group) == [expected(model, wave, penalty=penalty)[0] for wave in group]


@pytest.mark.parametrize("name", ["fbank", "conformer"])
@pytest.mark.parametrize("streams", [True, False])
def test_quantised_graphs_load_and_beams_run(
    tokens: Path, speech: list[np.ndarray], tmp_path: Path, streams: bool, name: str  # noqa: F811
) -> None:  # fmt: skip
    paths = exported(with_transducer(name, Transducer(dim=8, joiner_dim=12)), tmp_path, streams)
    for kind, path in paths.items():
        quantise(Path(path), tmp_path / f"{kind}.int8.onnx")
    paths = {kind: str(tmp_path / f"{kind}.int8.onnx") for kind in paths}
    options = {"tokens": str(tokens), "decoding_method": "modified_beam_search", **paths}
    if streams:
        recogniser = sherpa_onnx.OnlineRecognizer.from_transducer(**options)
        assert all(recogniser.tokens(each) for each in stream(recogniser, speech))
    else:
        assert all(offline(sherpa_onnx.OfflineRecognizer.from_transducer(**options), speech))


@pytest.mark.parametrize("predictor", ["stateless", "lstm"])
def test_stage_12_writes_every_graph_or_says_why_not(
    tmp_path: Path, speech: list[np.ndarray], caplog: pytest.LogCaptureFixture, predictor: str  # noqa: F811
) -> None:  # fmt: skip
    model = with_transducer("fbank", Transducer.model_validate({"predictor": predictor, "dim": 8, "joiner_dim": 12}))
    caplog.set_level("INFO")
    info = info_of(model, OUTPUTS, "two")
    write_graphs(cast("Recipe", None), model, info, "transducer", tmp_path)
    kinds = ["decoder", "joiner", "stream", "whole", *(["sherpa"] if predictor == "stateless" else [])]
    every = {f"{kind}.transducer{form}.onnx" for kind in kinds for form in ("", ".int8")}
    assert {path.name for path in tmp_path.iterdir()} == every
    assert ("for our own sessions alone: sherpa-onnx's predictors see" in caplog.text) == (predictor == "lstm")
    check_graphs(model, info, "transducer", tmp_path, speech[0])
    assert caplog.text.count("transducer.onnx: within") == 2
    other = with_transducer("fbank", model.settings.transducer, 5)
    write_graphs(cast("Recipe", None), other, info, "transducer", tmp_path)
    with pytest.raises(ValueError, match=r"whole\.transducer\.onnx differs from torch by"):
        check_graphs(model, info, "transducer", tmp_path, speech[0])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("fbank", None, r"has no transducer; train one with model.transducer: \{\}"),
        ("fbank", Transducer(predictor="lstm"), r"predictors see the last units alone .* not lstm"),
        ("waveform", Transducer(), "transducers are on 80-dimensional Fbank"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str, settings: Transducer | None, message: str) -> None:
    model = build(*MODELS[name]) if settings is None else with_transducer(name, settings)
    assert re.search(message, exporting.transducer_obstacle(model))
    if settings is None:
        with pytest.raises(ValueError, match=message):
            exporting.export_joiner(model, tmp_path / "decoder.onnx", tmp_path / "joiner.onnx")
    assert not [*tmp_path.iterdir()]
