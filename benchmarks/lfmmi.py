"""LF-MMI on a CPU: our engines, k2 on the same tensors and a roofline, in one table from one run.

Forward and backward of denominators of two sizes and of transcripts' numerators. Each figure comes from a
process of its own: median seconds, the memory that the call adds at its peak, and how far its values are from
ours in float64. k2 runs in its own environment (`benchmarks/k2.py`), so name that environment's Python.
A ratio is a row's seconds against the C++ kernel in float32 on the same case, cpu_ratio that of CPU time, which
says more where other programs are at work.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded; spinning blurs busy rows

import torch
from torch import Tensor

from benchmarks.graphs import denominator, numerators, peaky_log_probs
from benchmarks.measure import busy, in_process, k2_figures, measure
from benchmarks.roofline import roofline
from benchmarks.table import Row, above_zero, finish, parser
from distill.fsa.graph import Hmm
from distill.lfmmi import Engine, TorchEngine
from distill.lfmmi.cpu import CpuEngine

FRAMES_PER_PHONE = 5
OURS = "C++ float32"  # the row that ratios refer to
K2_BEAMS = {"k2 exact": 1e30, "k2 output_beam 8": 8.0}


class Case(NamedTuple):
    """Input of every engine."""

    name: str
    log_probs: Tensor
    lengths: Tensor
    graph: Hmm | list[Hmm]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--graphs", nargs="+", default=["bigram", "trigram", "numerators"], metavar="NAME")
    options.add_argument("--batches", nargs="+", type=int, default=[8, 32], metavar="B")
    options.add_argument("--frames", type=int, default=400, help="of each utterance")
    options.add_argument("--threads", nargs="+", type=int, default=[1, cores()], metavar="N")
    options.add_argument("--repeats", type=above_zero(int), default=21)
    options.add_argument("--k2-python", type=Path, help="Python of an environment with k2; without it k2 is left out")
    options.add_argument("--k2-timeout", type=above_zero(float), default=900, help="seconds for one of k2's rows")
    args = options.parse_args()
    finish(all_rows(args), args.json, goals=goals)


def all_rows(args: argparse.Namespace) -> Iterator[Row]:
    for name in args.graphs:
        for batch in args.batches:
            case = make_case(name, batch, args.frames)
            exact = in_process(engine_row, case, "C++ float64", 1, 1)["totals"]
            for threads in dict.fromkeys(args.threads):
                where = {"case": f"{case.name} B={batch} T={args.frames}", "threads": threads}
                rows = list(case_rows(args, case, threads))
                ours = next(row for row in rows if row["engine"] == OURS)
                for row in rows:
                    totals = row.pop("totals", None)
                    if totals is not None:
                        row["value_error"] = max(
                            abs(ours - theirs) / abs(theirs) for ours, theirs in zip(totals, exact)
                        )
                    for ratio, figure in (("ratio", "seconds"), ("cpu_ratio", "cpu_seconds")):
                        row[ratio] = row[figure] / ours[figure] if row.get(figure) else None
                    yield {**where, **row}


def goals(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Goals of the kernel against k2, over all denominators, in one thread; none without k2's rows."""
    shared = [row for row in rows if row["threads"] == 1 and not row["case"].startswith("numerators")]
    for engine, times in (("k2 exact", 1000), ("k2 output_beam 8", 40)):
        found = [row for row in shared if row["engine"] == engine and row.get("seconds")]
        if not found:
            continue
        memory = {row["case"]: row["peak_mb"] for row in shared if row["engine"] == OURS}
        faster = min(row["ratio"] for row in found)
        smaller = min(row["peak_mb"] / memory[row["case"]] for row in found)
        yield {"goal": f"{times} x faster than {engine}", "got": f"at least {faster:.0f} x", "met": faster >= times}
        yield {"goal": f"a 20th of {engine}'s memory", "got": f"at most 1/{smaller:.0f}", "met": smaller >= 20}


def case_rows(args: argparse.Namespace, case: Case, threads: int) -> Iterator[Row]:
    for name in (OURS, "C++ float64", "torch float32"):
        yield in_process(engine_row, case, name, threads, args.repeats if name != "torch float32" else 3)
    if threads > 1:
        with busy([None] * cores()):
            yield {
                **in_process(engine_row, case, OURS, threads, args.repeats),
                "engine": f"{OURS}, every core busy with others",
            }
    if args.k2_python and threads == 1:  # on a CPU k2 runs in one thread
        for name, beam in K2_BEAMS.items():
            yield k2_row(args, case, name, beam)
    if isinstance(case.graph, Hmm):
        yield in_process(roofline, case.graph, *case.log_probs.shape, threads)


def make_case(name: str, batch: int, frames: int) -> Case:
    log_probs, lengths = peaky_log_probs(batch, frames), torch.full((batch,), frames)
    if name == "numerators":
        phones = frames // FRAMES_PER_PHONE
        return Case(f"numerators of {phones} phones", log_probs, lengths, numerators(batch, phones))
    graph = denominator(name)
    return Case(f"{name} ({graph.num_states} states, {len(graph.src)} arcs)", log_probs, lengths, graph)


def engine_row(case: Case, name: str, threads: int, repeats: int) -> Row:
    torch.set_num_threads(threads)
    log_probs = case.log_probs.to(torch.float64 if name.endswith("64") else torch.float32)
    lengths, graph = case.lengths, case.graph
    engine: Engine = TorchEngine() if name.startswith("torch") else CpuEngine()
    warm = log_probs[:1, :2]  # compiles kernels and graph
    engine.score(warm, lengths[:1].clamp_max(2), graph if isinstance(graph, Hmm) else graph[:1])
    found: list[float] = []

    def run() -> None:
        leaf = log_probs.detach().requires_grad_()
        total = engine.score(leaf, lengths, graph).total
        total.sum().backward()
        found[:] = total.tolist()

    return {"engine": name, **measure(run, repeats), "totals": found}


def k2_row(args: argparse.Namespace, case: Case, name: str, beam: float) -> Row:
    """Seconds, peak_mb and totals of k2, or an error."""
    graphs = [case.graph] if isinstance(case.graph, Hmm) else case.graph
    hmms = [{name: x for name, x in vars(graph).items() if isinstance(x, Tensor)} for graph in graphs]
    content = {"log_probs": case.log_probs, "lengths": case.lengths, "hmms": hmms, "repeats": 5}
    content["output_beam"] = torch.tensor(beam)
    return {"engine": name, "seconds": None, "peak_mb": None, **k2_figures(args.k2_python, content, args.k2_timeout)}


def cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
