"""Many real-time streams on one server: latency of partial results, lost and mixed-up streams.

    python -m benchmarks.server --experiment exp-mini/ss --streams 64 --seconds 60 [--threads 2] [--runtime onnx int8]

Every stream is another sequence of the test set's utterances with pauses between them, sent in real time. Server
and clients are two processes; `taskset -c 0,1` pins both to two cores. Delay: from sending the block of audio that
completes a chunk to receiving its partial result. Processor seconds are the server's while it serves; those of
forward and search are wall-clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import kaldialign
import numpy as np

from benchmarks.table import Row, above_zero, finish, parser
from distill.config.model import SAMPLE_RATE
from distill.corpora.cut_sets import load_cuts
from distill.data.audio import read_audio
from distill.data.numerators import text_of
from distill.recipe.script import run_script
from distill.runtime.runner import RUNTIMES

PIECE = SAMPLE_RATE // 10
PAUSES = (0.3, 1.6)  # seconds between utterances; the longer ones end a segment


@dataclass
class Stream:
    """A stream: its audio and words, and the results received."""

    audio: np.ndarray
    words: list[str]
    sent: list[float] = field(default_factory=list)  # when each piece was
    delays: list[float] = field(default_factory=list)
    segments: dict[int, str] = field(default_factory=dict)
    received: int = 0
    ended: bool = False
    error: str = ""

    @property
    def hypothesis(self) -> list[str]:
        return " ".join(self.segments.values()).split()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--experiment", type=Path, required=True)
    options.add_argument("--data-dir", type=Path, help="default: beside the exp folder")
    options.add_argument("--set", default="test-clean", help="cut set whose utterances are spoken")
    options.add_argument("--streams", type=int, default=64)
    options.add_argument("--seconds", type=above_zero(float), default=60.0)
    options.add_argument("--threads", type=int, default=2, help="of the server")
    options.add_argument("--runtime", nargs="+", choices=RUNTIMES, default=["onnx"], help="one run for each")
    args = options.parse_args()
    finish((one_run(args, runtime) for runtime in args.runtime), args.json)


def one_run(args: argparse.Namespace, runtime: str) -> Row:
    """A row: a server, and all streams at once."""
    from distill.server.app import data_folder

    data = args.data_dir or data_folder(args.experiment)
    clients = random_streams(data, args.set, args.streams, args.seconds)
    server, port = start(args, data, runtime)
    try:
        before = processor_seconds(server.pid)
        asyncio.run(run_streams(clients, port))
        used = {"processor": processor_seconds(server.pid) - before, **inside(port)}
    finally:
        server.terminate()
        left = server.wait(30)
    return {**summary(clients, used, args, runtime), "exit": left}


def random_streams(data: Path, name: str, streams: int, seconds: float) -> list[Stream]:
    """Streams of utterances in another order each, with pauses."""
    cuts = list(load_cuts(data / "cuts", [name]))
    audio = {cut.id: read_audio(cut) for cut in cuts}
    clients, generator = [], np.random.default_rng(0)
    for _ in range(streams):
        pieces, words, length = [], [], 0
        while length < seconds * SAMPLE_RATE:
            cut = cuts[int(generator.integers(len(cuts)))]
            silence = np.zeros(int(generator.uniform(*PAUSES) * SAMPLE_RATE), np.float32)
            pieces += [audio[cut.id], silence]
            words += (text_of(cut) or "").split()
            length += len(audio[cut.id]) + len(silence)
        clients.append(Stream(np.concatenate(pieces), words))
    return clients


def start(args: argparse.Namespace, data: Path, runtime: str) -> tuple[subprocess.Popen, int]:
    """The server and its port, from its log."""
    command = [
        sys.executable, str(Path(__file__).resolve().parents[1] / "tools/serve.py"),
        "--experiment", str(args.experiment), "--data-dir", str(data), "--port", "0",
        "--streams", str(args.streams), "--threads", str(args.threads),
        "--runtime", runtime,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"://[^ ]*:(\d+)/", line):
            return server, int(found[1])
        print(line, end="", file=sys.stderr)
    raise RuntimeError("the server did not start; its messages stand above")


async def run_streams(clients: list[Stream], port: int) -> None:
    """All at once, begun within a second so that their chunks do not fall together."""
    offsets = np.linspace(0, 1, len(clients), endpoint=False)
    await asyncio.gather(*(run_stream(stream, port, offset) for stream, offset in zip(clients, offsets)))


async def run_stream(stream: Stream, port: int, offset: float) -> None:
    from websockets.asyncio.client import connect

    await asyncio.sleep(offset)
    try:
        async with connect(f"ws://127.0.0.1:{port}/sherpa", compression=None, open_timeout=30) as socket:
            listening = asyncio.create_task(receive(stream, socket))
            begun = time.monotonic()
            for number, at in enumerate(range(0, len(stream.audio), PIECE), 1):
                await asyncio.sleep(max(0.0, begun + number * PIECE / SAMPLE_RATE - time.monotonic()))
                stream.sent.append(time.monotonic())
                await socket.send(stream.audio[at : at + PIECE].tobytes())
            await socket.send("Done")
            await listening
    except (OSError, EOFError, TimeoutError, RuntimeError) as error:
        stream.error = f"{type(error).__name__}: {error}"


async def receive(stream: Stream, socket) -> None:
    async for message in socket:
        now = time.monotonic()
        if message == "Done!":
            stream.ended = True
            return
        result = json.loads(message)
        stream.segments[result["segment"]] = result["text"]
        stream.received = result["samples"]
        if len(stream.audio) > stream.received:
            stream.delays.append(now - stream.sent[(stream.received - 1) // PIECE])


def summary(clients: list[Stream], used: dict[str, float], args: argparse.Namespace, runtime: str) -> Row:
    """The row of the table. used: seconds of the server, by what they were for."""
    delays = np.array([delay for stream in clients for delay in stream.delays])
    errors = [kaldialign.edit_distance(stream.words, stream.hypothesis)["total"] for stream in clients]
    mixed = sum(
        min(kaldialign.edit_distance(other.words, stream.hypothesis)["total"] for other in clients) < own
        for stream, own in zip(clients, errors)
    )
    audio = sum(len(stream.audio) for stream in clients) / SAMPLE_RATE
    return {
        "case": f"{args.streams} streams of {args.seconds:g} s", "engine": runtime, "threads": args.threads,
        "p95_seconds": float(np.quantile(delays, 0.95)), "median_seconds": float(np.median(delays)),
        "worst_seconds": float(delays.max()), "partials": len(delays),
        **{name: seconds / audio for name, seconds in used.items()},
        "lost": sum(not stream.ended or stream.received != len(stream.audio) for stream in clients), "mixed": mixed,
        "wer": 100 * sum(errors) / sum(len(stream.words) for stream in clients), "cores": len(os.sched_getaffinity(0)),
        "failures": sorted({stream.error for stream in clients if stream.error}),
    }  # fmt: skip


def processor_seconds(pid: int) -> float:
    """Of a process that runs, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def inside(port: int) -> dict[str, float]:
    """Seconds that the server has spent in the model and in the search, from its metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    found = re.findall(r"^distill_(forward|search)_seconds_sum (\S+)$", text, re.MULTILINE)
    return {name: float(seconds) for name, seconds in found}


if __name__ == "__main__":
    run_script(main)
