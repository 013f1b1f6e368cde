"""Everything that only a GPU can show, in one call of at most 8 minutes: tools/gpu_check.sh [--dry-run] [--json FILE].

Kernels against the reference; LF-MMI with its roofline; an update of T1 -> S5 at its true shape with hours of audio per
hour, MFU and the share of each part; the mini recipe in bfloat16 with its error rates. Each part is a process with a
limit of time; one that fails or is out of time is recorded as that, with the rows that it had.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.recipe import RECIPE, ROOT
from benchmarks.table import Row, finish, parser
from distill.recipe.provenance import hardware
from distill.recipe.script import run_script
from distill.report.benchmarks import UNMEASURED, read_benchmark

NO_TESTS = 5  # status of pytest where all are deselected
TRITON_TESTS = ("pytest", "-q", "-p", "no:cacheprovider", "-x", "tests/unit/lfmmi/test_triton.py")


@dataclass(frozen=True)
class Part:
    """A process: arguments of `python -m`; limit: seconds. dry: on a CPU, none: left out. rows: it writes --json."""

    name: str
    limit: int
    arguments: tuple[str, ...]
    dry: tuple[str, ...]
    rows: bool = True


PARTS = (
    Part("kernels = reference, full size", 60, (*TRITON_TESTS, "-m", "cuda"),
         (*TRITON_TESTS, "-k", "wrong_input or full_size"), False),
    Part("LF-MMI", 80, ("benchmarks.lfmmi_gpu",),
         ("benchmarks.lfmmi_gpu", "--device=cpu", "--batch=2", "--frames=12", "--repeats=1")),
    Part("update of T1 -> S5", 100, ("benchmarks.step",),
         ("benchmarks.step", "--device=cpu", f"--experiment={RECIPE}/conf/mini/sn.yaml", "--set=data.max_duration=0.6",
          "--seconds=0.3", "--repeats=1", "--denominator=bigram")),
    Part("mini recipe", 170, ("benchmarks.mini",), ("benchmarks.mini", "--device=cpu", "--rehearse=true")),
    Part("kernels = reference, all tests", 45, TRITON_TESTS, (), False),
)  # fmt: skip
"""The last one is the one to miss. Limits add up to less than 8 minutes."""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--dry-run", action="store_true", help="every part on a CPU with tiny sizes, within a minute")
    options.add_argument("--data-dir", type=Path, help="of the mini recipe, with stages 0 to 4 done elsewhere")
    options.add_argument("--exp-dir", type=Path, help="of the mini recipe")
    args = options.parse_args()
    device = torch.device("cpu" if args.dry_run else "cuda")
    if not args.dry_run and not torch.cuda.is_available():
        raise ValueError("torch finds no GPU here; --dry-run runs every part on a CPU with tiny sizes")
    finish(all_rows(args), args.json, goals=goals, each=True, hardware=hardware(device))


def all_rows(args: argparse.Namespace) -> Iterator[Row]:
    """For each part a row with its outcome, after the rows that it wrote."""
    folders = [f"--{name}={path}" for name, path in (("data-dir", args.data_dir), ("exp-dir", args.exp_dir)) if path]
    for part in (part for part in PARTS if part.dry or not args.dry_run):
        arguments = [*(part.dry if args.dry_run else part.arguments), *(folders if part.name == "mini recipe" else [])]
        with tempfile.TemporaryDirectory() as folder:
            path, begun = Path(folder) / "rows.json", time.monotonic()
            outcome = run([*arguments, *([f"--json={path}"] if part.rows else [])], part.limit)
            seconds = time.monotonic() - begun
            yield from read_benchmark(path)["rows"] if path.is_file() else ()
        yield {"case": "parts", "engine": part.name, "seconds": seconds, "outcome": outcome}


def run(arguments: Sequence[str], limit: float) -> str:
    """Run `python -m` with a limit of time; "passed", or why it did not."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.terminate()  # which ends what it has started
        try:
            process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        return f"out of time after {limit:g} s"
    lines = [line for line in output.splitlines() if line.strip()] or [f"ended with {process.returncode}"]
    if process.returncode in (0, NO_TESTS):
        return f"passed: {lines[-1].strip('= ')}" if "pytest" in arguments else "passed"
    print("\n".join(lines), flush=True)
    return f"failed: {lines[-1][:200]}"


def goals(rows: Sequence[Row]) -> Iterator[Row]:
    """What was reached of each goal; nothing for what was not measured at its true size."""
    update = [row for row in rows if row["case"].startswith("update of s5 ")]
    trigram = [row for row in rows if row["case"].startswith("trigram ") and row["case"].endswith("B=32 T=500")]
    mfu = next((100 * row["mfu_share"] for row in update if row["engine"] == "whole"), None)
    share = next((100 * row["share"] for row in update if row["engine"] == "LF-MMI"), None)
    kernel = next((1e3 * row["seconds"] for row in trigram if row["seconds"]), None)
    met = (mfu is not None and mfu >= 35, share is not None and share <= 10, kernel is not None and kernel <= 3)
    for goal, got, reached in zip(UNMEASURED["gpu_check"], (mfu, share, kernel), met):
        yield {"goal": goal, "got": got, "met": None if got is None else reached}


if __name__ == "__main__":
    run_script(main)
