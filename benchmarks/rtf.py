"""Real-time factor of the paper's largest teacher and of students, on one thread, in one run.

    python -m benchmarks.rtf [--seconds 15] [--rounds 5] [--json FILE] [--students NAME,…]

T1 runs over a whole utterance, each student whole and in chunks, all in torch and ONNX Runtime, fp32 and int8.
Weights are random: they do not change the time. All take turns, round after round, so that a busy machine slows
all alike; seconds are those of the processor, the ratio is that of T1 in torch over a row's in the same round.
The limit is what the row's multiply-adds would take at the speed of the machine's fastest large matrix product.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.models import Row, load, student, take_turns, ways_of
from benchmarks.table import Row as Figures
from benchmarks.table import above_zero, finish, parser
from distill.config.model import SAMPLE_RATE
from distill.recipe.script import run_script
from distill.runtime.timing import gemm_peak

GOALS = {  # (case, engine): times faster than T1
    ("s5_stream streaming", "torch"): 8, ("s5_stream streaming", "onnx"): 12, ("s5_stream streaming", "onnx int8"): 20,
    ("s5_fbank_stream streaming", "onnx int8"): 35, ("s5_fbank40_stream streaming", "onnx int8"): 60,
}  # fmt: skip
PRODUCTS = {  # operator and types of its matrices; by whether these are of 8 bits
    False: (("MatMul", "float32", "float32"),),
    True: (("MatMulInteger", "uint8", "int8"), ("MatMulInteger", "uint8", "uint8")),
}
SIZES = (512, 1024, 2048)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=above_zero(float), default=15.0, help="length of the utterance")
    options.add_argument("--rounds", type=above_zero(int), default=5)
    options.add_argument("--students", default="s5_stream,s5_fbank_stream,s5_fbank40_stream")
    args = options.parse_args()
    torch.set_num_threads(1)
    audio = (0.1 * np.random.default_rng(0).standard_normal(int(args.seconds * SAMPLE_RATE))).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        rows = ways_of(load("teacher"), "T1", Path(folder) / "teacher", len(audio))
        for name in args.students.split(","):
            rows += student(name, Path(folder) / name, len(audio))
        take_turns(rows, audio, args.rounds)
        peaks = {int8: fastest_product(int8, Path(folder)) for int8 in PRODUCTS}
        peaks[False] = max(peaks[False], gemm_peak())
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


def fastest_product(int8: bool, folder: Path) -> float:
    """GFLOP/s or GOP/s of one thread, the best of ONNX Runtime's products of square matrices."""
    return max(speed(*product, size=size, folder=folder) for product in PRODUCTS[int8] for size in SIZES)


def speed(operator: str, left: str, right: str, size: int, folder: Path, repeats: int = 9) -> float:
    """GFLOP/s or GOP/s of one thread in a product of two matrices, of which the right one is constant."""
    import onnx

    from distill.runtime.onnx_runner import load_graph

    path, random = folder / "product.onnx", np.random.default_rng(0)
    of_product = "float32" if left == "float32" else "int32"
    a, y = (
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)), [size, size])
        for name, kind in (("a", left), ("y", of_product))
    )
    weight = onnx.numpy_helper.from_array(random.integers(0, 64, (size, size)).astype(right), "b")
    graph = onnx.helper.make_graph([onnx.helper.make_node(operator, ["a", "b"], ["y"])], "product", [a], [y], [weight])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), str(path))
    session, times = load_graph(path), list[float]()
    feed = {"a": random.integers(0, 64, (size, size)).astype(left)}
    for _ in range(repeats):
        start = time.process_time()
        session.run(None, feed)
        times.append(time.process_time() - start)
    return 2 * size**3 / statistics.median(times) / 1e9


if __name__ == "__main__":
    run_script(main)
