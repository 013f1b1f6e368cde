"""LF-MMI on a CPU: our engines, k2 on the same tensors and a roofline, in one table from one run.

Forward and backward of denominators of two sizes and of transcripts' numerators. Each figure comes from a
process of its own: median seconds, the memory that the call adds at its peak, and how far its values are from
ours in float64. k2 runs in its own environment (`benchmarks/k2.py`), so name that environment's Python.
A ratio is a row's seconds against the C++ kernel in float32 on the same case, cpu_ratio that of CPU time, which
says more where other programs are at work. `--json FILE` writes the table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded; spinning blurs busy rows

import torch
from torch import Tensor

from benchmarks.graphs import denominator, numerators, peaky_log_probs
from benchmarks.measure import busy, measure
from benchmarks.roofline import roofline
from benchmarks.table import Row, finish, progress
from distill.fsa.graph import Hmm
from distill.lfmmi import Engine, TorchEngine
from distill.lfmmi.cpu import CpuEngine

ROOT = Path(__file__).resolve().parents[1]
FRAMES_PER_PHONE = 5
OURS = "C++ float32"  # the row that ratios refer to
K2_BEAMS = {"k2 exact": "exact", "k2 output_beam 8": "8"}


class Case(NamedTuple):
    """Input of every engine; dump: the same in k2's form (`make_case`)."""

    name: str
    dump: Path
    log_probs: Tensor
    lengths: Tensor
    graph: Hmm | list[Hmm]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", nargs="+", default=["bigram", "trigram", "numerators"], metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32], metavar="B")
    parser.add_argument("--frames", type=int, default=400, help="of each utterance")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, cores()], metavar="N")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--k2-python", type=Path, help="Python of an environment with k2; without it k2 is left out")
    parser.add_argument("--k2-timeout", type=float, default=900, help="seconds for one of k2's rows")
    parser.add_argument("--k2-memory", type=float, default=8.0, help="GB that k2 may take at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in all_rows(args, Path(folder)):
            progress(row)
            rows.append(row)
    finish(rows, args.json, goals=list(goals(rows)))


def all_rows(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    for name in args.graphs:
        for batch in args.batches:
            case = make_case(folder / f"{name}-{batch}.pt", name, batch, args.frames)
            exact = in_process(engine_row, case, "C++ float64", 1, 1)["totals"]
            for threads in dict.fromkeys(args.threads):
                where = {"case": f"{case.name} B={batch} T={args.frames}", "threads": threads}
                rows = list(case_rows(args, case, threads))
                ours = next(row for row in rows if row["engine"] == OURS)
                for row in rows:
                    totals = row.pop("totals", None)
                    if totals is not None:
                        row["value_error"] = relative_error(totals, exact)
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
            yield k2_row(args, case.dump, name, beam)
    if isinstance(case.graph, Hmm):
        yield in_process(roofline, case.graph, *case.log_probs.shape, threads)


def make_case(dump: Path, name: str, batch: int, frames: int) -> Case:
    """A case, and the same for k2 in a file: a dict that torch.save wrote.

    log_probs (B, T, V) float32; lengths (B,) int64; denominator: a dict as k2.Fsa.from_dict reads it, or None;
    numerators: a list of B such dicts, or None.
    """
    log_probs, lengths = peaky_log_probs(batch, frames), torch.full((batch,), frames)
    content: dict[str, Any] = {"log_probs": log_probs, "lengths": lengths, "denominator": None, "numerators": None}
    graph: Hmm | list[Hmm]
    if name == "numerators":
        graph = graphs = numerators(batch, frames // FRAMES_PER_PHONE)
        content["numerators"] = [{"arcs": k2_arcs(each)} for each in graphs]
        title = f"numerators of {frames // FRAMES_PER_PHONE} phones"
    else:
        graph = shared = denominator(name)
        arcs = k2_arcs(shared)
        content["denominator"] = {"arcs": arcs}
        title = f"{name} ({int(arcs[:, 1].max()) + 1} states, {len(arcs)} arcs)"
    torch.save(content, dump)
    return Case(title, dump, log_probs, lengths, graph)


def k2_arcs(graph: Hmm) -> Tensor:
    """Arcs (A, 4) int32 in k2's form: state 0 begins, the last state ends, a label is that of the state led to.

    CTC's first blank state goes on exactly as the beginning does, so it is the beginning.
    """
    first = int(torch.nonzero((graph.label == 0) & (graph.initial == 0))[0])
    new = torch.arange(graph.num_states)
    new[0], new[first] = first, 0
    ending = torch.nonzero(graph.final > -torch.inf).squeeze(1)
    src = torch.cat([new[graph.src], new[ending]])
    dst = torch.cat([new[graph.dst], torch.full_like(ending, graph.num_states)])
    label = torch.cat([graph.label[graph.dst], torch.full_like(ending, -1)])
    score = torch.cat([graph.weight, graph.final[ending]]).float().view(torch.int32)
    order = torch.argsort(src * (graph.num_states + 1) + dst, stable=True)
    return torch.stack([src.int(), dst.int(), label.int(), score], 1)[order]


def in_process(function: Any, *arguments: Any) -> Row:
    """Result of the function in a fresh process, with its own memory and threads."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


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


def k2_row(args: argparse.Namespace, dump: Path, name: str, beam: str) -> Row:
    """A row as `benchmarks.k2` prints it: seconds, peak_mb and totals, or an error."""
    command = [args.k2_python, "-m", "benchmarks.k2", dump, "--output-beam", beam, "--memory-gb", args.k2_memory]
    row: Row = {"engine": name, "seconds": None, "peak_mb": None}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # not installed there
    try:
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=args.k2_timeout, env=environment
        )
    except subprocess.TimeoutExpired:
        return row | {"error": f"more than {args.k2_timeout:.0f} s"}
    if done.returncode:
        return row | {"error": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}
    return row | json.loads(done.stdout.splitlines()[-1])


def relative_error(totals: Sequence[float], exact: Sequence[float]) -> float:
    return max(abs(ours - theirs) / abs(theirs) for ours, theirs in zip(totals, exact))


def cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
