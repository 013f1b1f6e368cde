"""Real-time factor of the paper's largest teacher and of students, on one thread, in one run.

    python -m benchmarks.rtf [--seconds 15] [--rounds 5] [--json FILE] [--students NAME,…]

T1 runs in torch, fp32, over a whole utterance; each student whole and in chunks, in torch and ONNX Runtime, fp32
and int8. Weights are random: they do not change the time. All take turns, round after round, so that a busy
machine slows all alike; seconds are those of the processor, the ratio is T1's over a row's in the same round.
The limit is what the row's multiply-adds would take at the speed of large matrix products on this machine.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.models import OUTPUTS, Row, load, student, take_turns
from benchmarks.table import Row as Figures
from benchmarks.table import finish, parser
from distill.config.model import SAMPLE_RATE
from distill.models.cost import macs
from distill.recipe.script import run_script
from distill.runtime.session import Session
from distill.runtime.timing import gemm_peak
from distill.runtime.torch_runner import info_of, torch_runner

GOALS = {  # (case, engine): times faster than T1
    ("s5_stream streaming", "onnx"): 9, ("s5_stream streaming", "onnx int8"): 15,
    ("s5_fbank_stream streaming", "onnx int8"): 25, ("s5_fbank40_stream streaming", "onnx int8"): 25,
}  # fmt: skip


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=15.0, help="length of the utterance")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--students", default="s5_stream,s5_fbank_stream,s5_fbank40_stream")
    args = options.parse_args()
    torch.set_num_threads(1)
    audio = (0.1 * np.random.default_rng(0).standard_normal(int(args.seconds * SAMPLE_RATE))).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        rows = [teacher(len(audio))]
        for name in args.students.split(","):
            rows += student(name, Path(folder) / name, len(audio))
        take_turns(rows, audio, args.rounds)
        peaks = {False: gemm_peak(), True: int8_peak(Path(folder))}
        found = [figures(row, rows[0], args.seconds, peaks) for row in rows]
    facts = {"seconds_of_audio": args.seconds, "gemm_gflops": peaks[False], "int8_gops": peaks[True]}
    finish(found, args.json, goals=goals, **facts)


def goals(rows: Sequence[Figures]) -> Iterator[dict]:
    """Goals of the streaming rows: times faster than T1."""
    for (case, engine), times in GOALS.items():
        for row in rows:
            if (row["case"], row["engine"]) == (case, engine):
                got = f"{row['ratio']:.1f} x"
                yield {"goal": f"{case}, {engine}: {times} x faster than T1", "got": got, "met": row["ratio"] >= times}


def teacher(samples: int) -> Row:
    """T1 in torch over the whole utterance."""
    model = load("teacher")
    session = Session(torch_runner(model, info_of(model, OUTPUTS, "T1"), False))
    return Row("T1 whole", "torch", session, samples, sum(macs(model.settings, len(OUTPUTS)).values()), False, [])


def figures(row: Row, first: Row, seconds: float, peaks: dict[bool, float]) -> Figures:
    """A row of the table: medians over rounds, and the share of the machine's peak."""
    ratios = [theirs / ours for theirs, ours in zip(first.times, row.times)]
    spent = statistics.median(row.times)
    limit = 2 * row.macs * seconds / peaks[row.int8] / 1e9
    return {
        "case": row.case, "engine": row.engine, "seconds": spent, "ratio": statistics.median(ratios),
        "ratio_low": min(ratios), "ratio_high": max(ratios), "rtf": spent / seconds,
        "macs_per_second": row.macs, "limit_seconds": limit, "share_of_peak": limit / spent,
    }  # fmt: skip


def int8_peak(folder: Path, size: int = 1024, repeats: int = 15) -> float:
    """GOP/s of one thread in ONNX Runtime's product of 8-bit matrices."""
    import onnx

    from distill.runtime.onnx_runner import load_graph

    path = folder / "product.onnx"
    weight = np.random.default_rng(0).integers(-64, 64, (size, size)).astype(np.int8)
    node = onnx.helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    a = onnx.helper.make_tensor_value_info("a", onnx.TensorProto.UINT8, [size, size])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [size, size])
    graph = onnx.helper.make_graph([node], "product", [a], [y], [onnx.numpy_helper.from_array(weight, "b")])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), str(path))
    session, times = load_graph(path), []
    feed = {"a": np.random.default_rng(1).integers(0, 255, (size, size)).astype(np.uint8)}
    for _ in range(repeats):
        start = time.process_time()
        session.run(None, feed)
        times.append(time.process_time() - start)
    return 2 * size**3 / statistics.median(times) / 1e9


if __name__ == "__main__":
    run_script(main)
