"""Stream audio for hours: memory, real-time factor, and whether the output stays that of the masked forward.

    python -m benchmarks.stream AUDIO… --experiment DIR [--hours 1] [--runtimes NAME,…] [--every 6] [--json FILE]

The files are repeated as one utterance, which is read and fed to a session in pieces of 0.1 s.
For each `--every` minutes: seconds of the processor per second of audio, memory of the process in RAM at their end,
and the largest difference of a log-probability from the masked forward, which runs over windows that overlap by all
that a frame can see (`distill.decode.log_probs.in_windows`); int8 is not compared, as it is another model.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import memory_mb
from benchmarks.table import Row, finish, parser
from distill.config.model import SAMPLE_RATE
from distill.decode.log_probs import in_windows
from distill.models.checkpoint import load_recogniser
from distill.recipe.script import run_script
from distill.runtime.audio import read_audio
from distill.runtime.open import open_session
from distill.runtime.session import Session

PIECE = SAMPLE_RATE // 10
WINDOW = 60.0  # seconds of a window of the masked forward, without what it overlaps


def main() -> None:
    options = parser(__doc__)
    options.add_argument("audio", nargs="+", type=Path)
    options.add_argument("--experiment", type=Path, required=True, help="a streaming experiment's folder")
    options.add_argument("--hours", type=float, default=1.0)
    options.add_argument("--runtimes", default="torch,onnx,int8")
    options.add_argument("--every", type=float, default=6.0, help="minutes of a row")
    options.add_argument("--resample", action="store_true", help="take other sample rates than 16 kHz")
    args = options.parse_args()
    torch.set_num_threads(1)
    every, rows = int(args.every * 60 * SAMPLE_RATE), []
    for runtime in args.runtimes.split(","):  # before anything else takes memory
        session = open_session(args.experiment, runtime, "streaming")
        for number, row in enumerate(timed(session, pieces(args), every)):
            minutes = f"{number * args.every:g} to {(number + 1) * args.every:g}"
            rows.append({"case": f"{args.experiment.name}, one stream", "engine": runtime, "minutes": minutes, **row})
            print(rows[-1], flush=True)
    for runtime in args.runtimes.split(","):
        if runtime != "int8":
            mine = [row for row in rows if row["engine"] == runtime]
            for row, difference in zip(mine, compared(args, runtime, every), strict=True):
                row["difference_from_masked"] = difference
    command = f"python -m benchmarks.stream AUDIO… --experiment {args.experiment.name} --hours {args.hours:g}"
    finish(rows, args.json, command)


def pieces(args: argparse.Namespace) -> Iterator[np.ndarray]:
    """The audio, a tenth of a second at a time; one file of it in memory."""
    left = int(args.hours * 3600 * SAMPLE_RATE)
    for path in itertools.cycle(args.audio):
        wave = read_audio(path, args.resample)[:left]
        left -= len(wave)
        yield from (wave[start : start + PIECE] for start in range(0, len(wave), PIECE))
        if not left:
            return


def timed(session: Session, audio: Iterator[np.ndarray], every: int) -> Iterator[Row]:
    """A row for each `every` samples."""
    spent, samples = 0.0, 0
    for piece in audio:
        begun = time.process_time()
        session.feed(piece)
        spent += time.process_time() - begun
        samples += len(piece)
        if samples >= every:
            yield {"rtf": spent * SAMPLE_RATE / samples, "memory_mb": memory_mb()}
            spent, samples = 0.0, samples - every
    session.flush()


def compared(args: argparse.Namespace, runtime: str, every: int) -> list[float]:
    """The largest difference of log-probabilities from the masked forward, for each `every` samples."""
    session, model = open_session(args.experiment, runtime, "streaming"), load_recogniser(args.experiment)[0]
    model.select_output(session.output)
    hop, worst, frame = model.front_end.hop, [0.0], 0
    ours, waiting = streamed(session, pieces(args)), np.zeros((0, session.info.columns(session.output)), np.float32)
    for masked in in_windows(model, pieces(args), int(WINDOW * SAMPLE_RATE / hop)):
        while len(waiting) < len(masked):
            waiting = np.concatenate([waiting, next(ours)])
        place = frame * hop // every
        worst += [0.0] * (place + 1 - len(worst))
        worst[place] = max(worst[place], float(np.abs(waiting[: len(masked)] - masked).max()))
        waiting, frame = waiting[len(masked) :], frame + len(masked)
    if len(waiting) or any(len(rest) for rest in ours):
        raise ValueError(f"the session gave more than the {frame} frames of the masked forward")
    return worst[: int(args.hours * 3600 * SAMPLE_RATE) // every]


def streamed(session: Session, audio: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Log-probabilities (T, V) as they come."""
    for piece in audio:
        yield session.feed(piece).log_probs
    yield session.flush().log_probs


if __name__ == "__main__":
    run_script(main)
