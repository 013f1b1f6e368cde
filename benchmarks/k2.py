"""k2's row of benchmarks/lfmmi.py, run by the Python of an environment with k2 (.venv-k2): forward and backward.

    .venv-k2/bin/python -m benchmarks.k2 CASE.pt --output-beam exact

CASE.pt is written by benchmarks/lfmmi.py: log_probs (B, T, V) float32, lengths (B,), and denominator (a dict as
k2.Fsa.from_dict reads it, shared by the batch) or numerators (B such dicts). Prints a line of JSON: what
benchmarks.measure.measure returns (seconds, peak_mb), totals (B,), pieces: how many calls the batch was cut into,
out_of_memory: how many utterances in one call did not fit. Each size is tried in a process of its own, which may
have nine tenths of the memory that is free.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EXACT = 1e30  # a beam that prunes nothing
LARGEST_INT = 2**31 - 1  # k2 narrows the beam where states or arcs are more than allowed
NO_MEMORY = ("alloc", "memory", "ENOMEM")  # what k2 and torch say where there is none


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", type=Path)
    parser.add_argument("--output-beam", default="exact", help="exact, or natural-log units")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-gb", type=float, help="default: nine tenths of what is free")
    parser.add_argument("--chunk", type=int, help="try this one only, in this process")
    args = parser.parse_args()
    if not args.case.is_file():
        sys.exit(f"no case at {args.case}; benchmarks/lfmmi.py writes it")
    try:
        row = measured(args, args.chunk) if args.chunk else chunked(args)
    except ImportError as error:
        sys.exit(f"this Python has no k2 ({error}); ./tools/test.sh --k2 makes one that has: .venv-k2/bin/python")
    print(json.dumps(row))


def chunked(args: argparse.Namespace) -> dict[str, Any]:
    """The row of the largest chunk that fits: the whole batch, else half, a quarter, …"""
    import torch

    chunk = len(torch.load(args.case, weights_only=True)["lengths"])
    failed: list[int] = []
    while chunk:
        command = [sys.executable, "-m", "benchmarks.k2", *sys.argv[1:], "--chunk", str(chunk)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1]) | {"out_of_memory": failed}
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        killed = done.returncode in (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV)
        if not (killed or any(word in done.stderr for word in NO_MEMORY)):
            sys.exit(next((line for line in said if "Check failed" in line), said[-1]))
        failed.append(chunk)
        chunk //= 2
    return {"seconds": None, "peak_mb": None, "error": "out of memory with one utterance at a time"}


def measured(args: argparse.Namespace, chunk: int) -> dict[str, Any]:
    import k2  # noqa: F401 (its libraries are loaded before memory is limited)
    import torch

    from benchmarks.measure import measure

    case = torch.load(args.case, weights_only=True)
    torch.set_num_threads(args.threads)
    limit_memory(args.memory_gb)
    order = torch.argsort(case["lengths"], descending=True, stable=True)
    pieces = order.split(chunk)
    beam = EXACT if args.output_beam == "exact" else float(args.output_beam)
    graphs = [graph(case, piece) for piece in pieces]
    found = torch.empty(len(order), dtype=torch.float64)

    def run() -> None:
        for piece, fsas in zip(pieces, graphs):
            found[piece] = forward_backward(case["log_probs"][piece], case["lengths"][piece], fsas, beam)

    return {**measure(run, args.repeats), "totals": found.tolist(), "pieces": len(pieces)}


def graph(case: dict[str, Any], piece: Any) -> Any:
    """What these utterances are intersected with: the one denominator, or the numerator of each."""
    import k2

    if case["denominator"] is not None:
        return k2.arc_sort(k2.create_fsa_vec([k2.Fsa.from_dict(case["denominator"])]))
    return k2.arc_sort(k2.create_fsa_vec([k2.Fsa.from_dict(case["numerators"][row]) for row in piece.tolist()]))


def forward_backward(log_probs: Any, lengths: Any, fsas: Any, beam: float) -> Any:
    """Totals (P,) float64 of utterances in order of falling length; gradients are computed and left."""
    import k2
    import torch

    leaf = log_probs.detach().requires_grad_()
    rows = torch.arange(len(lengths))
    segments = torch.stack([rows, torch.zeros_like(rows), lengths], 1).to(torch.int32)
    if fsas.shape[0] < len(lengths):
        fsas = k2.index_fsa(fsas, torch.zeros(len(lengths), dtype=torch.int32))
    limits = {"max_states": LARGEST_INT, "max_arcs": LARGEST_INT}
    lattice = k2.intersect_dense(fsas, k2.DenseFsaVec(leaf, segments), beam, **limits)
    total = lattice.get_tot_scores(use_double_scores=True, log_semiring=True)
    total.sum().backward()
    return total.detach()


def limit_memory(gigabytes: float | None) -> None:
    """Let allocations fail here, before the system ends some process."""
    free = gigabytes * 1e9 if gigabytes else 0.9 * min(available())
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(free), resource.RLIM_INFINITY))


def available() -> Iterator[float]:
    """Bytes that are free: in the machine, and in the control group if it has a limit."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    yield next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (most := (group / "memory.max").read_text().strip()) != "max":
        yield float(most) - float((group / "memory.current").read_text())


if __name__ == "__main__":
    main()
