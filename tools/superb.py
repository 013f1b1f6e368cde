"""Evaluate experiments on the tasks of SUPERB by s3prl's recipes. Called by superb.sh, which makes s3prl's environment.

    superb.sh KS --experiment EXP_DIR --data DIR     train and test a task; a second call continues, or is done at once
    superb.sh IC --experiment EXP_DIR --data DIR --real-speech CORPUS    DIR is first written (KS, IC, SF)
    superb.sh KS --experiment EXP_DIR --data DIR --conditions YAML       the test recordings under distortions, too
    superb.sh --experiment EXP_DIR EXP_DIR           the table of what is finished, with both scores over the tasks

Figures are written into EXP_DIR/superb/TASK.json, s3prl's files into EXP_DIR/superb/TASK. Tasks and their data:

TASK_LIST
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill.config.names import repeated
from distill.recipe.script import log_to_console, run_script
from distill.superb.tasks import TASKS, Task, find_task, without_conditions

if TYPE_CHECKING:
    from distill.config.distortions import Distort


def main() -> None:
    log_to_console()
    options = parser()
    args = options.parse_args()
    if twice := repeated([folder.resolve().name for folder in args.experiment]):
        options.error(f"--experiment: {', '.join(twice)} is the name of several; give seeds in calls of their own")
    task = find_task(args.task) if args.task else None
    check(args, task)
    if args.check:
        return
    if task:
        run(args, task)
    show(args.experiment)


def check(args: argparse.Namespace, task: Task | None) -> None:
    """Raises ValueError for options that do not fit each other, FileNotFoundError for folders that are not there."""
    of_task = ("data", "real_speech", "conditions", "noises", "set")
    if task is None and (given := [f"--{name.replace('_', '-')}" for name in of_task if getattr(args, name)]):
        raise ValueError(f"{', '.join(given)}: of a task; name one, such as superb.sh KS")
    if args.noises and not args.conditions:
        raise ValueError(f"--noises {args.noises}: noises are of --conditions; give those too, or leave it out")
    if task is not None and not args.data:
        raise ValueError(f"{task.name} needs --data, a folder with {task.corpus}")
    if task is not None and not args.real_speech:
        for own in task.runs:
            task.data(args.data, own)
    if task is not None and args.conditions and task.evaluation is None:
        raise ValueError(without_conditions(task))
    folders = {"--experiment": args.experiment, "--noises": [args.noises], "--real-speech": [args.real_speech]}
    for option, given in folders.items():
        if missing := [str(folder) for folder in given if folder is not None and not folder.is_dir()]:
            raise FileNotFoundError(f"{option}: there is no folder {', '.join(missing)}")
    if args.conditions and not args.conditions.is_file():
        raise FileNotFoundError(f"--conditions: there is no file {args.conditions}")
    if task is not None and (bare := [str(each) for each in args.experiment if not any(each.glob("epoch-*.pt"))]):
        raise FileNotFoundError(f"--experiment: no checkpoint in {', '.join(bare)}; train it first (run.sh)")


def run(args: argparse.Namespace, task: Task) -> None:
    """Train and test a task on every experiment."""
    from distill.data.distortions import Distorter
    from distill.superb.real_speech import write_task
    from distill.superb.run import Probe, measure

    noises = args.noises or Path()
    conditions = {name: Distorter(each, noises) for name, each in distortions(args.conditions, noises).items()}
    if args.real_speech:
        write_task(task.name, args.real_speech, args.data)
    probe = Probe(args.set, args.device, args.last_state, args.epoch, conditions)
    for folder in args.experiment:
        measure(task, folder, args.data, probe)


def distortions(path: Path | None, noises: Path) -> Mapping[str, Distort]:
    """`decoding.conditions` of an experiment; raises FileNotFoundError where recorded noise of one is not there."""
    from distill.config.experiment import conditions_of

    found = conditions_of(path) if path else {}
    for name, each in found.items():
        for part in each.noises.values():
            if not (noises / part).is_dir():
                raise FileNotFoundError(
                    f"{path}: decoding.conditions.{name}: there is no folder {noises / part}; give --noises, the folder"
                    f" below which {part} lies, such as egs/librispeech/data"
                )
    return found


def show(experiments: Sequence[Path]) -> None:
    """The tables of what is finished; raises ValueError where nothing is."""
    from distill.report import superb

    tasks = {folder.resolve().name: superb.read(folder) for folder in experiments}
    table, distorted = superb.table(tasks), superb.distorted_table(tasks)
    if table is None:
        names = ", ".join(map(str, experiments))
        raise ValueError(f"no task of SUPERB is finished in {names}; give one (superb.sh KS --experiment …)")
    print("\n".join([*table.terminal(), "", superb.NOTE, *(["", *distorted.terminal()] if distorted else [])]))


def parser() -> argparse.ArgumentParser:
    width = max(map(len, TASKS))
    tasks = "\n".join(f"    {task.name:{width}}  {task.title}: {task.corpus}" for task in TASKS.values())
    options = argparse.ArgumentParser(
        prog="superb.sh",
        description=(__doc__ or "").replace("TASK_LIST", tasks),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("task", nargs="?", help="one of the tasks below; without one, the table only")
    options.add_argument("--experiment", type=Path, nargs="+", required=True, metavar="EXP_DIR", help="trained ones")
    options.add_argument("--data", type=Path, metavar="DIR", help="the task's corpus, in its published layout")
    options.add_argument(
        "--real-speech", type=Path, metavar="CORPUS",
        help="a corpus of egs/spoken_commands, from whose keywords and orders --data is written where it is not there",
    )  # fmt: skip
    options.add_argument(
        "--conditions", type=Path, metavar="YAML",
        help="the test recordings under each of decoding.conditions of an experiment, too; no further training",
    )  # fmt: skip
    options.add_argument(
        "--noises", type=Path, metavar="DIR", help="the folder below which noises of conditions lie; default: this one"
    )
    options.add_argument(
        "--last-state", action="store_true", help="train on the last hidden states, not on a weighted sum of all"
    )
    options.add_argument("--epoch", choices=("last", "best"), default="last", help="best: by validation loss")
    options.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    options.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="override a setting of s3prl's recipe, such as build_optimizer.conf.lr=5e-3, train.use_scheduler=true",
    )  # fmt: skip
    options.add_argument("--check", action="store_true", help=argparse.SUPPRESS)  # show what is wrong, and do nothing
    return options


if __name__ == "__main__":
    run_script(main)
