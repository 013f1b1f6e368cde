"""Students of random weights, and their speed in every runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.config.experiment import Experiment
from distill.models.macs import macs
from distill.models.recogniser import Recogniser, build_model
from distill.runtime.onnx_runner import onnx_runner
from distill.runtime.session import Session
from distill.runtime.timing import piece_of, run
from distill.runtime.torch_runner import info_of, torch_runner

CONF = Path(__file__).resolve().parents[1] / "egs" / "librispeech" / "conf"
OUTPUTS = [f"unit{i}" for i in range(43)]


def student(name: str, folder: Path, samples: int) -> list[Row]:
    """An experiment's model of random weights, as `ways_of`."""
    return ways_of(load(name), name, folder, samples)


def ways_of(model: Recogniser, name: str, folder: Path, samples: int) -> list[Row]:
    """A model in chunks, where it streams, and whole, in torch and ONNX Runtime, fp32 and int8."""
    from distill.export import onnx as exporting
    from distill.export.quantise import quantise

    folder.mkdir()
    info, cost, rows = info_of(model, OUTPUTS, name), sum(macs(model.settings, len(OUTPUTS)).values()), []
    exports = {"streaming": exporting.export_stream} if info.chunk_frames else {}
    for case, export in {**exports, "whole": exporting.export_whole}.items():
        streams = case == "streaming"
        kind = "stream" if streams else "whole"
        fp32, int8 = folder / f"{kind}.onnx", folder / f"{kind}.int8.onnx"
        export(model, fp32)
        quantise(fp32, int8)
        sessions = {
            "torch": Session(torch_runner(model, info, streams)),
            "onnx": Session(onnx_runner(fp32, info, streams)),
            "onnx int8": Session(onnx_runner(int8, info, streams)),
        }
        for engine, session in sessions.items():
            piece = piece_of(session, "" if streams else "offline", samples)
            rows.append(Row(f"{name} {case}", engine, session, piece, cost, engine == "onnx int8", []))
    return rows


@dataclass
class Row:
    """One way to run one model: a session, samples fed at a time, its multiply-adds per second, and its times."""

    case: str
    engine: str
    session: Session
    piece: int
    macs: float
    int8: bool
    times: list[float]


def take_turns(rows: Sequence[Row], audio: np.ndarray, rounds: int) -> None:
    """Time all rows in turn, so many rounds, after one that warms up ONNX Runtime."""
    for number in range(rounds + 1):
        for row in rows:
            if number or row.engine != "torch":
                row.times += [run(row.session, audio, row.piece)[0]]
    for row in rows:
        row.times = row.times[-rounds:]


def load(name: str) -> Recogniser:
    """The model of an experiment of the LibriSpeech recipe, random weights."""
    return build_model(Experiment.load(CONF / f"{name}.yaml").model, len(OUTPUTS)).eval()
