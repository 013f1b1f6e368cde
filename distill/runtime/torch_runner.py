"""A checkpoint run by torch: `Recogniser.step` over streams, or the forward over whole utterances."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.models import streaming
from distill.models.checkpoint import load_recogniser
from distill.models.pretrained import build_imported, read_checkpoint
from distill.models.recogniser import Recogniser
from distill.runtime.info import ModelInfo
from distill.runtime.runner import ChunkRequest, StreamRunner, WholeRunner


class TorchBatches:
    """`Recogniser.step` over the streams whose states can be joined (a `BatchRunner`)."""

    def __init__(self, model: Recogniser, info: ModelInfo) -> None:
        self.model, self.info = model.eval(), info
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
        log_probs = logits.log_softmax(-1).numpy()
        return [(row[:n], after) for row, n, after in zip(log_probs, lengths.tolist(), streaming.split(state))]


def torch_runner(model: Recogniser, info: ModelInfo, streams: bool) -> StreamRunner | WholeRunner:
    """One stream of a model: in chunks, or the whole-utterance forward."""
    if streams:
        return StreamRunner(TorchBatches(model, info))

    @torch.inference_mode()
    def forward(wave: np.ndarray) -> np.ndarray:
        output = model.eval()(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
        logits = output.logits if model.selected == "main" else output.ctc_logits
        return logits[0].log_softmax(-1).numpy()

    return WholeRunner(info, forward)


def info_of(model: Recogniser, outputs: Sequence[str], name: str) -> ModelInfo:
    """The information that sessions and exported graphs need besides the weights."""
    gain = float(getattr(model.front_end, "gain", 1.0))
    return ModelInfo(name=name, model=model.settings, gain=gain, outputs=tuple(outputs))


def open_model(folder: Path | str, output: str, threads: int) -> tuple[Recogniser, ModelInfo]:
    """An experiment's last checkpoint, or a published model such as hf:NAME, with an output selected.

    Raises FileNotFoundError or ValueError.
    """
    torch.set_num_threads(threads)
    if isinstance(folder, str):
        imported = build_imported(read_checkpoint(folder), None, None)
        model, info = imported.model.eval(), info_of(imported.model, imported.outputs, folder)
    else:
        model, experiment, outputs, _ = load_recogniser(folder)
        info = info_of(model, outputs, experiment.name)
    model.select_output(output)
    info.check_output(output)
    return model, info
