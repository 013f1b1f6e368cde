"""What trainings take, before they are begun: parameters, memory of each GPU, hours, disk.

    plan.py egs/librispeech/conf/{teacher,s5,s5_stream}.yaml --gpus 8 --hours 960 [--throughput FILE|measure]

FILE: the JSON of tools/gpu_check.sh; measure: an update of the first experiment is measured here, on a GPU if any. The
teacher of an experiment is the YAML of its name in the same folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from distill.files import write_json
from distill.plan import training
from distill.plan.table import shown
from distill.recipe.script import run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("yaml", type=Path, nargs="+", help="experiments")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--hours", type=float, default=960, help="of unlabelled audio")
    parser.add_argument("--labelled-hours", type=float, default=100)
    parser.add_argument("--device-memory", type=float, default=80, metavar="GiB", help="of one GPU")
    parser.add_argument("--throughput", metavar="FILE|measure", help="default: an assumption, which is printed")
    parser.add_argument("--data-dir", type=Path, help="of a recipe: its lattices' size")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    args = parser.parse_args()
    if not 0 < args.device_memory < 1e9:
        raise ValueError(f"--device-memory must be greater than 0 GiB (got {args.device_memory:g})")
    task = training.Task(args.gpus, args.hours, args.labelled_hours)
    throughput, source = training.Throughput(), args.throughput
    if source:
        throughput = measured(args.yaml[0]) if source == "measure" else training.Throughput.read(Path(source))
    plans = [training.plan_of(path, args.set, task, throughput) for path in args.yaml]
    lattices = training.measured_lattice_bytes(args.data_dir) if args.data_dir else None
    disk = training.corpus_bytes(task, lattices or training.LATTICE_BYTES)
    lines = training.assumptions(task, throughput, lattices)
    print(*shown(plans, disk, args.device_memory * 2**30), "Assumptions", *(f"  {line}" for line in lines), sep="\n")
    if args.json:
        write_json(args.json, {"plans": [asdict(each) for each in plans], "disk_bytes": disk, "assumptions": lines})


def measured(yaml: Path) -> training.Throughput:
    """An update on this machine, by benchmarks.step in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path, root = Path(folder) / "step.json", Path(__file__).resolve().parents[1]
        options = ["--experiment", str(yaml.resolve()), "--json", str(path), "--repeats", "3"]
        subprocess.run([sys.executable, "-m", "benchmarks.step", *options], cwd=root, stdout=sys.stderr)
        return training.Throughput.read(path)


if __name__ == "__main__":
    run_script(main)
