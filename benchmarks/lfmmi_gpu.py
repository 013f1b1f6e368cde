"""LF-MMI on a GPU: our kernels against torch and k2 on the same tensors, a roofline, the share of a training step.

Forward and backward, float32, medians of wall time with the device synchronised; k2 where it can be imported.
Ends with status 3 where there is no CUDA device.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.graphs import OUTPUTS, denominator, numerators, peaky_log_probs
from benchmarks.table import Row, finish, parser
from distill.config.experiment import Experiment
from distill.fsa.graph import Hmm
from distill.lfmmi import Engine, NativeEngine, TorchEngine, triton
from distill.lfmmi.triton_tables import SharedTables
from distill.losses.mmi import LfMmi
from distill.models.recogniser import build_model
from distill.recipe.script import run_script

ROOT = Path(__file__).resolve().parents[1]
NO_GPU = 3
FRAMES_PER_PHONE = 6  # about 0.12 s at 20 ms a frame


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--frames", type=int, default=500, help="of each utterance")
    options.add_argument("--repeats", type=int, default=20)
    student = ROOT / "egs" / "librispeech" / "conf" / "s5.yaml"
    options.add_argument("--experiment", type=Path, default=student, help="whose student takes the training step")
    args = options.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/lfmmi_gpu.py: torch finds no CUDA device here, so nothing was measured", file=sys.stderr)
        sys.exit(NO_GPU)
    device = torch.device("cuda")
    rows = all_rows(device, args.batch, args.frames, args.repeats, Experiment.load(args.experiment))
    finish(rows, args.json, hardware=torch.cuda.get_device_name(device))


def all_rows(device: torch.device, batch: int, frames: int, repeats: int, experiment: Experiment) -> Iterator[Row]:
    """The table, row by row; a ratio is seconds against our engine's on the same case."""
    log_probs = peaky_log_probs(batch, frames).to(device)
    lengths = torch.full((batch,), frames, device=device)
    size = f"B={batch} T={frames}"
    for name in ("trigram", "bigram"):
        graph = denominator(name)
        case = f"{name} ({graph.num_states} states, {len(graph.src)} arcs) {size}"
        rows = list(engine_rows(case, log_probs, lengths, graph, repeats))
        yield from rows
        if rows[0]["seconds"]:
            yield from roofline_rows(case, log_probs, graph, rows[0]["seconds"])
    transcripts = numerators(batch, max(1, frames // FRAMES_PER_PHONE))
    yield from engine_rows(f"numerators of transcripts {size}", log_probs, lengths, transcripts, repeats)
    yield from step_rows(size, device, batch, frames, repeats, experiment, NativeEngine())


def engine_rows(
    case: str, log_probs: Tensor, lengths: Tensor, graph: Hmm | Sequence[Hmm], repeats: int
) -> Iterator[Row]:
    """One row for each engine, ours first: seconds and peak memory, or why there are none."""
    ours = None
    for place, (name, engine) in enumerate(engines()):

        def run(engine: Engine = engine) -> None:
            leaf = log_probs.detach().requires_grad_()
            engine.score(leaf, lengths, graph).total.sum().backward()

        try:
            seconds, memory = measure(run, max(3, repeats // 5) if place else repeats, log_probs.device)
        except RuntimeError as error:  # out of memory, or k2 refusing
            yield {"case": case, "engine": name, "seconds": None, "ratio": None, "error": str(error).splitlines()[0]}
            continue
        ours = ours if place else seconds
        ratio = seconds / ours if ours else None
        yield {"case": case, "engine": name, "seconds": seconds, "ratio": ratio, "peak_mb": memory}


def engines() -> Iterator[tuple[str, Engine]]:
    """Ours first, then its peers."""
    yield "ours (Triton)" if triton.available() else "ours (torch: Triton is not there)", NativeEngine()
    yield "torch", TorchEngine()
    try:
        from distill.lfmmi.k2 import K2Engine  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return
    yield "k2 exact", K2Engine()
    yield "k2 output_beam 8", K2Engine(output_beam=8.0)


def measure(run: Callable[[], None], repeats: int, device: torch.device) -> tuple[float, float]:
    """Median seconds of `run` after three calls to warm up, and the memory in MB that it takes at most."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(3):
        run()
    synchronise()
    memory = 0.0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        synchronise()
        seconds.append(time.perf_counter() - start)
    if device.type == "cuda":
        memory = (torch.cuda.max_memory_allocated(device) - before) / 1e6
    return statistics.median(seconds), memory


def roofline_rows(case: str, log_probs: Tensor, graph: Hmm, ours: float) -> Iterator[Row]:
    """The least that the Triton kernel's plan can take on this device, whatever its instructions.

    Memory: alpha and beta written once and read once, scores read, posteriors written, at the device's measured
    copying speed. Gathers: a streaming multiprocessor reads 32 numbers a cycle from shared memory, and runs one
    direction of one utterance at a time.
    """
    if log_probs.device.type != "cuda" or not triton.available():
        return
    from triton.runtime import driver

    batch, frames, outputs = log_probs.shape
    tables = SharedTables(graph, 0.0, log_probs.device, log_probs.dtype)
    states = tables.stride
    memory = 4 * batch * frames * (4 * states + 3 * outputs) / copying_speed(log_probs.device)
    gathers = max(sum(table[0].numel() + table[2].numel() for table in both) for both in (tables.ahead, tables.back))
    properties = driver.active.utils.get_device_properties(log_probs.device.index or 0)
    waves = math.ceil(2 * batch / properties["multiprocessor_count"])
    in_shared = waves * frames * gathers / 32 / (properties["sm_clock_rate"] * 1e3)
    for name, seconds in (("roofline: memory", memory), ("roofline: gathers", in_shared)):
        yield {"case": case, "engine": name, "seconds": seconds, "ratio": seconds / ours}


def copying_speed(device: torch.device) -> float:
    """Bytes read and written a second by a large copy."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    return 2 * len(source) / measure(copy, 10, device)[0]


def step_rows(
    size: str, device: torch.device, batch: int, frames: int, repeats: int, experiment: Experiment, engine: Engine
) -> Iterator[Row]:
    """A whole training step of the student with LF-MMI alone, and LF-MMI's share of it."""
    model = build_model(experiment.model, OUTPUTS).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters())
    mmi = LfMmi(engine, denominator("trigram"))
    transcripts = numerators(batch, max(1, frames // FRAMES_PER_PHONE))
    wave = torch.randn(batch, frames * experiment.model.front_end.hop, device=device)
    samples = torch.full((batch,), wave.shape[1], device=device)
    precision = getattr(torch, experiment.optim.precision)

    def step() -> None:
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            output = model(wave, samples)
        mmi.loss(output.logits, output.lengths, transcripts).terms["mmi"].total.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    logits = torch.randn(batch, frames, OUTPUTS, device=device)
    lengths = torch.full((batch,), frames, device=device)

    def loss_alone() -> None:
        mmi.loss(logits.detach().requires_grad_(), lengths, transcripts).terms["mmi"].total.backward()

    whole, _ = measure(step, max(3, repeats // 2), device)
    alone, _ = measure(loss_alone, repeats, device)
    case = f"training step of {experiment.name}, {experiment.optim.precision}, {size}"
    yield {"case": case, "engine": "whole step", "seconds": whole, "ratio": 1.0}
    yield {"case": case, "engine": "LF-MMI in it", "seconds": alone, "ratio": alone / whole}


if __name__ == "__main__":
    run_script(main)
