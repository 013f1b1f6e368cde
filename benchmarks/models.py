"""Students of random weights, and their speed in every runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distill.config.experiment import Experiment
from distill.models.cost import macs
from distill.models.recogniser import Recogniser
from distill.models.transfer import build_model
from distill.runtime.onnx_runner import StreamRunner, WholeRunner
from distill.runtime.session import Session
from distill.runtime.timing import piece_of
from distill.runtime.torch_runner import TorchRunner, facts_of

CONF = Path(__file__).resolve().parents[1] / "egs" / "librispeech" / "conf"
OUTPUTS = [f"unit{i}" for i in range(43)]


def student(name: str, folder: Path, samples: int) -> list[Row]:
    """A streaming student in chunks and whole, torch and ONNX Runtime, fp32 and int8."""
    from distill.export import onnx as exporting

    folder.mkdir()
    model = load(name)
    facts, cost, rows = facts_of(model, OUTPUTS, name), sum(macs(model.settings, len(OUTPUTS)).values()), []
    ways: dict[str, tuple[Callable, type]] = {
        "streaming": (exporting.export_stream, StreamRunner),
        "whole": (exporting.export_whole, WholeRunner),
    }
    for case, (export, runner) in ways.items():
        kind = "stream" if case == "streaming" else "whole"
        fp32, int8 = folder / f"{kind}.onnx", folder / f"{kind}.int8.onnx"
        export(model, fp32)
        exporting.quantise(fp32, int8)
        sessions = {
            "torch": Session(TorchRunner(model, facts, case == "streaming")),
            "onnx": Session(runner(fp32, facts)),
            "onnx int8": Session(runner(int8, facts)),
        }
        for engine, session in sessions.items():
            piece = piece_of(session, "" if case == "streaming" else "offline", samples)
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


def load(name: str) -> Recogniser:
    """The model of an experiment of the LibriSpeech recipe, random weights."""
    return build_model(Experiment.load(CONF / f"{name}.yaml").model, len(OUTPUTS)).eval()
