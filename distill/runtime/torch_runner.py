"""A checkpoint run by torch: `Recogniser.step` over streams, or the forward over whole utterances."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.config.decoding import Decoding
from distill.config.experiment import Experiment
from distill.decode.log_probs import normalised, selected
from distill.decode.transducer import Network
from distill.models import streaming
from distill.models.checkpoint import load_recogniser
from distill.models.pretrained import build_imported, read_checkpoint
from distill.models.recogniser import Recogniser
from distill.models.transducer import Transducer
from distill.runtime.info import ModelInfo
from distill.runtime.runner import ChunkRequest, StreamRunner, WholeRunner


class TorchNetwork:
    """Predictor and joiner of a model (a `Network` of searches), on the CPU."""

    def __init__(self, transducer: Transducer) -> None:
        self.transducer = transducer

    @torch.inference_mode()
    def start(self) -> tuple[np.ndarray, np.ndarray]:
        return self._read(self.transducer.predictor.start(1))

    @torch.inference_mode()
    def advance(self, states: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._read(self.transducer.predictor.advance(torch.from_numpy(states), torch.from_numpy(units)))

    @torch.inference_mode()
    def log_probs(self, frame: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        logits = self.transducer.logits(torch.from_numpy(frame), torch.from_numpy(predicted))
        return logits.log_softmax(1).numpy()

    def _read(self, states: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        predicted = self.transducer.predictor_projection(self.transducer.predictor.read(states))
        return states.numpy(), predicted.numpy()


def network_of(model: Recogniser) -> Network | None:
    """Predictor and joiner where the transducer is the selected output."""
    if model.selected != "transducer" or model.transducer is None:
        return None
    return TorchNetwork(model.transducer.cpu())


class TorchBatches:
    """`Recogniser.step` over the streams whose states can be joined (a `BatchRunner`)."""

    def __init__(self, model: Recogniser, info: ModelInfo) -> None:
        self.model, self.info = model.eval(), info
        self.output, self.network = model.selected, network_of(model)
        info.chunk_samples(False)  # refuses full context

    def open(self) -> Any:
        return self.model.initial_state(1)

    def needs(self, begun: bool) -> int:
        return self.info.chunk_samples(not begun)

    def step(self, requests: Sequence[ChunkRequest]) -> list[tuple[np.ndarray, Any]]:
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            groups[request.final, streaming.key(request.state)].append(i)
        results: dict[int, tuple[np.ndarray, Any]] = {}
        for members in groups.values():
            results |= zip(members, self._forward([requests[i] for i in members]))
        return [results[i] for i in range(len(requests))]

    @torch.inference_mode()
    def _forward(self, requests: Sequence[ChunkRequest]) -> list[tuple[np.ndarray, Any]]:
        waves = [torch.from_numpy(request.wave) for request in requests]
        samples = torch.tensor([len(wave) for wave in waves])
        padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        state = streaming.join([request.state for request in requests])
        logits, lengths, state = self.model.step(padded, state, samples, final=requests[0].final)
        log_probs = normalised(self.model, logits).numpy()
        return [(row[:n], after) for row, n, after in zip(log_probs, lengths.tolist(), streaming.split(state))]


def torch_runner(model: Recogniser, info: ModelInfo, streams: bool) -> StreamRunner | WholeRunner:
    """One stream of a model: in chunks, or the whole-utterance forward."""
    if streams:
        return StreamRunner(TorchBatches(model, info))

    @torch.inference_mode()
    def forward(wave: np.ndarray) -> np.ndarray:
        output = model.eval()(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
        return normalised(model, selected(model, output))[0].numpy()

    return WholeRunner(info, forward, model.selected, network_of(model))


def info_of(model: Recogniser, outputs: Sequence[str], name: str, experiment: Experiment | None = None) -> ModelInfo:
    """The information that sessions and exported graphs need besides the weights.

    experiment: what trained the model; without one, all of its outputs count as trained.
    """
    main, decoding = (experiment.recognises, experiment.decoding) if experiment else (True, Decoding())
    trained = {"main": main, "ctc": model.ctc is not None, "transducer": model.transducer is not None}
    return ModelInfo(
        name=name, model=model.settings, gain=float(getattr(model.front_end, "gain", 1.0)), outputs=tuple(outputs),
        selectable=tuple(output for output, is_trained in trained.items() if is_trained),
        transducer_beam=decoding.transducer_beam, transducer_lm_scale=decoding.transducer_lm_scale,
        transducer_blank_penalty=decoding.transducer_blank_penalty,
    )  # fmt: skip


def open_model(folder: Path | str, output: str, threads: int) -> tuple[Recogniser, ModelInfo]:
    """An experiment's last checkpoint, or a published model such as hf:NAME, with an output selected, the first for "".

    Raises FileNotFoundError or ValueError.
    """
    torch.set_num_threads(threads)
    if isinstance(folder, str):
        imported = build_imported(read_checkpoint(folder), None, None)
        model, info = imported.model.eval(), info_of(imported.model, imported.outputs, folder)
    else:
        model, experiment, outputs, _ = load_recogniser(folder)
        info = info_of(model, outputs, experiment.name, experiment)
    return model.select_output(info.chosen(output)), info
