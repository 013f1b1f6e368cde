"""The mini recipe in bfloat16 on a GPU: seconds of each stage, and word error rates.

    python -m benchmarks.mini [--device cuda] [--data-dir DIR --exp-dir DIR] [--rehearse true] [--json FILE]

The stages run in one process, from the first that is not done; folders that are given may come from another machine.
"""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.recipe import RECIPE, ROOT, STAGES, flags
from benchmarks.table import Row, finish, parser
from distill.recipe.provenance import hardware
from distill.recipe.script import run_script
from distill.report.runs import GRAPH, read_runs

REHEARSAL: dict[str, object] = {
    "optim.updates": 2, "optim.epochs": 0, "data.valid_utterances": 2, "data.max_duration": 12,
    "data.train": "[labelled,unlabelled]", "optim.precision": "float32",
}  # fmt: skip


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--device", default="cuda")
    options.add_argument("--data-dir", type=Path, help="default: a temporary folder")
    options.add_argument("--exp-dir", type=Path, help="default: a temporary folder")
    options.add_argument("--rehearse", choices=("true", "false"), default="false", help="on a handful of sentences")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, exp = args.data_dir or Path(folder) / "data", args.exp_dir or Path(folder) / "exp"
        settings: dict[str, object] = {"decoding.methods": f"[{GRAPH}]", "optim.precision": "bfloat16"}
        settings |= REHEARSAL if args.rehearse == "true" else {}
        given = {
            "conf-dir": RECIPE / "conf" / "mini", "data-dir": data, "exp-dir": exp, "device": args.device,
            "nj": os.cpu_count() if args.device != "cpu" else 1, "experiment": "teacher,sn,ss",
            "mini": "false" if args.rehearse == "true" else "true", "rehearse": args.rehearse,
        }  # fmt: skip
        rows = all_rows(flags(given, settings), exp)
        finish(rows, args.json, each=True, hardware=hardware(torch.device(args.device)))


def all_rows(options: list[str], exp: Path) -> Iterator[Row]:
    """A row for each stage when it ends, then one for each error rate of the decoding graph."""
    for stage, (script, *more) in STAGES.items():
        begun, arguments = time.monotonic(), sys.argv
        sys.argv = [script, *options, *more]
        try:
            runpy.run_path(str(ROOT / "local" / script), run_name="__main__")
        finally:
            sys.argv = arguments
        yield {"case": "mini recipe", "engine": f"stage {stage}: {script}", "seconds": time.monotonic() - begun}
    for run in read_runs(exp):
        for decoding in run.decodings:
            if decoding.method == GRAPH:
                engine = f"{run.name}, {decoding.test_set}, {decoding.mode}"
                yield {"case": "mini recipe, n-gram graph", "engine": engine, "wer": decoding.wer}


if __name__ == "__main__":
    run_script(main)
