"""Run a set of experiments (egs/<corpus>/conf/sets), with several seeds; the same call continues one that was stopped.

--status shows what is done and to come with its cost, --collect copies finished results into egs/<corpus>/results. Sets
of one recipe may share --dir: what they have in common is then trained once.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from distill.config.experiment_set import ExperimentSet
from distill.recipe.experiment_set import RESULT, SetRun
from distill.recipe.script import log_to_console, run_script
from distill.report.collect import collect

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    log_to_console()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", type=Path, help="YAML file of the set")
    parser.add_argument("--dir", type=Path, required=True, help="where it is run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="those to run here; default: all of the set")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time")
    parser.add_argument("--nj", type=int, help="processes of each training; default: the cores over --jobs")
    parser.add_argument("--corpus-dir", default="", help="where the corpus lies")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--status", action="store_true", help="show what is done and what is to come, run nothing")
    other.add_argument("--collect", action="store_true", help="copy the results of what is done, run nothing")
    args = parser.parse_args()
    if args.jobs < 1 or (args.nj is not None and args.nj < 1):
        parser.error("--jobs and --nj must be at least 1")
    nj = args.nj or max(1, (os.cpu_count() or 1) // args.jobs)
    run = SetRun(ExperimentSet.read(args.set), ROOT, args.dir.resolve(), nj, args.corpus_dir, tuple(args.seeds))
    if args.status:
        print("\n".join(run.status().terminal()))
    elif args.collect:
        copy_results(run)
    else:
        run.run(args.jobs)


def copy_results(run: SetRun) -> None:
    """Raises ValueError where nothing is trained."""
    found = False
    for seed in run.seeds:
        target = run.recipe / "results" / run.settings.name / f"seed-{seed}"
        own = [name for name in run.experiments if seed in run.settings.seeds_of(name)]
        if any((run.exp(seed) / name / RESULT).is_file() for name in own):
            copies = collect(run.exp(seed), target, ROOT, own)
            print(f"{len(copies)} files: {target.relative_to(ROOT)}")
            found = True
    if not found:
        raise ValueError(
            f"no experiment of {run.settings.name} is trained in {run.folder} (seeds {', '.join(map(str, run.seeds))});"
            " run the set first, or give another --dir"
        )


if __name__ == "__main__":
    run_script(main)
