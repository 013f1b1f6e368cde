"""LF-MMI on a GPU: our kernels against torch and k2 on the same tensors, and a roofline.

Forward and backward, float32, medians of wall time with the device synchronised; k2 where it can be imported.
Ends with status 3 where there is no CUDA device.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.device import copying_speed, measure
from benchmarks.graphs import denominator, numerators, peaky_log_probs
from benchmarks.table import Row, above_zero, finish, parser
from distill.fsa.graph import Hmm
from distill.lfmmi import Engine, NativeEngine, TorchEngine, triton
from distill.lfmmi.triton_tables import SharedTables
from distill.recipe.provenance import hardware
from distill.recipe.script import run_script

NO_GPU = 3
FRAMES_PER_PHONE = 6  # about 0.12 s at 20 ms a frame


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--frames", type=int, default=500, help="of each utterance")
    options.add_argument("--repeats", type=above_zero(int), default=20)
    options.add_argument("--device", default="cuda", help="cpu: where the C++ engine is ours")
    args = options.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("benchmarks/lfmmi_gpu.py: torch finds no CUDA device here, so nothing was measured", file=sys.stderr)
        sys.exit(NO_GPU)
    finish(all_rows(device, args.batch, args.frames, args.repeats), args.json, each=True, hardware=hardware(device))


def all_rows(device: torch.device, batch: int, frames: int, repeats: int) -> Iterator[Row]:
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


def engine_rows(
    case: str, log_probs: Tensor, lengths: Tensor, graph: Hmm | Sequence[Hmm], repeats: int
) -> Iterator[Row]:
    """One row for each engine, ours first: seconds and peak memory, or why there are none."""
    ours = None
    for place, (name, engine) in enumerate(engines(log_probs.device)):

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


def engines(device: torch.device) -> Iterator[tuple[str, Engine]]:
    """Ours first, then its peers."""
    on_gpu = "ours (Triton)" if triton.available() else "ours (torch: Triton is not there)"
    yield on_gpu if device.type == "cuda" else "ours (C++)", NativeEngine()
    yield "torch", TorchEngine()
    try:
        from distill.lfmmi.k2 import K2Engine  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return
    yield "k2 exact", K2Engine()
    yield "k2 output_beam 8", K2Engine(output_beam=8.0)


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


if __name__ == "__main__":
    run_script(main)
