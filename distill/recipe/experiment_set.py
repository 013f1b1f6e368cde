"""Runs a set of experiments through its recipe's run.sh, and shows what is done, running and to come."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from threading import Lock

import yaml

from distill.config.experiment import Experiment
from distill.config.experiment_set import ExperimentSet
from distill.config.files import merged, read
from distill.config.graphs import Graphs
from distill.config.language_model import LanguageModel
from distill.config.names import hint
from distill.files import write_text
from distill.recipe.folders import DONE
from distill.report.results import TrainingResult
from distill.report.runs import decoding_files
from distill.report.table import Table, number

log = logging.getLogger(__name__)

OF_A_SEED = ("num", "units")  # of a data-dir: made by experiments, so that each seed has its own
TARGETS = "targets"  # of a data-dir: their names tell which teacher they are of, so that seeds may share them
OTHERS = ("graphs.yaml", "lm.yaml")  # of a conf-dir, beside experiments
OTHER_SCOPES = (Graphs.SCOPE, LanguageModel.SCOPE)  # beginnings of settings that are of those
RESULT = "result.json"
LABELLING = 7  # the stage


class Calls:
    """Programs that threads run, until all are to end."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen] = []
        self._ended, self._lock = False, Lock()

    def run(self, words: Sequence[str]) -> int:
        """Run a program to its end; returns its exit status. Raises RuntimeError after `end`."""
        with self._lock:
            if self._ended:
                raise RuntimeError("ended, as another call has failed or this program is to end")
            program = subprocess.Popen(words)
            self._running.append(program)
        try:
            return program.wait()
        except BaseException:  # of this thread: a signal
            program.terminate()
            program.wait()
            raise
        finally:
            self._running.remove(program)

    def end(self) -> None:
        """End what runs, by SIGTERM, and begin nothing more."""
        with self._lock:
            self._ended = True
            for program in self._running:
                program.terminate()


@dataclass(frozen=True)
class SetRun:
    """A set and the folder that it is run in: conf (its YAML files), data, and for each seed conf, exp and data.

    root: of the repository. nj: processes of a training. corpus_dir: where the corpus lies, empty for none. only:
    the seeds that are run, others are another machine's; empty for all. What all seeds share is trained in any case.
    """

    settings: ExperimentSet
    root: Path
    folder: Path
    nj: int = 1
    corpus_dir: str = ""
    only: tuple[int, ...] = ()
    _calls: Calls = field(default_factory=Calls, repr=False, compare=False)

    @property
    def recipe(self) -> Path:
        return self.root / "egs" / self.settings.corpus

    @property
    def conf(self) -> Path:
        return self.folder / "conf"

    @property
    def first(self) -> int:
        """The seed of what all seeds share."""
        return self.settings.seeds[0]

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Those that are run. Raises ValueError for one that the set does not have."""
        for seed in self.only:
            if seed not in self.settings.seeds:
                raise ValueError(f"seeds: the set has no seed {seed}, but {', '.join(map(str, self.settings.seeds))}")
        return tuple(seed for seed in self.settings.seeds if not self.only or seed in self.only)

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """The seeds that an experiment is trained with here."""
        shared = name in self.settings.shared
        return tuple(seed for seed in self.settings.seeds_of(name) if shared or seed in self.seeds)

    def exp(self, seed: int) -> Path:
        """Folder of a seed's experiments."""
        return self.folder / f"seed-{seed}" / "exp"

    @cached_property
    def experiments(self) -> dict[str, Experiment]:
        """By name; their YAML files are written anew. Raises FileNotFoundError or ValueError for wrong ones."""
        if not (self.recipe / "run.sh").is_file():
            recipes = [path.parent.name for path in self.recipe.parent.glob("*/run.sh")]
            raise FileNotFoundError(f"corpus: no recipe {self.recipe}{hint(self.settings.corpus, recipes)}")
        self._write(self.conf, {})
        names = [name for name, _ in self.settings.each()]
        own = [setting for setting in self.settings.settings if not setting.startswith(OTHER_SCOPES)]
        found = {name: Experiment.load(self.conf / f"{name}.yaml", own) for name in names}
        known = dict.fromkeys(condition for each in found.values() for condition in each.decoding.conditions)
        for name in (name for table in self.settings.tables for name in table.conditions):
            if name not in known:
                raise ValueError(f"tables: no experiment has decoding.conditions.{name}{hint(name, known)}")
        return found

    @cached_property
    def waves(self) -> tuple[list[list[str]], list[list[str]]]:
        """Names of shared and of other experiments, in groups of which each builds on those before it.

        Raises ValueError for a circle, and where what is shared, or what all seeds train, builds on what is not.
        """
        experiments, shared, once = self.experiments, {*self.settings.shared}, {*self.settings.once}
        every = list(levels(experiments))
        for name, experiment in experiments.items():
            sources = {*_sources(experiment)} & experiments.keys()
            if name in shared and (own := sorted(sources - shared)):
                raise ValueError(f"shared: {name} builds on {', '.join(own)}, each seed's own; share that too")
            if name not in once and (single := sorted(sources & once)):
                raise ValueError(f"once: {name} of all seeds builds on {', '.join(single)}; name both here, or neither")
        of_all = [part for wave in every if (part := [name for name in wave if name in shared])]
        of_seeds = [part for wave in every if (part := [name for name in wave if name not in shared])]
        return of_all, of_seeds

    @cached_property
    def _labelling(self) -> set[str]:
        """Teachers whose lattices others learn from: they are made with the teacher, before seeds share it."""
        return {each.teacher.experiment for each in self.experiments.values() if each.teacher and each.reads_lattices}

    def run(self, jobs: int) -> None:
        """Run all that is not done, so many seeds at a time.

        Raises ValueError as `waves` does, RuntimeError after the first call that fails. Then, and where this process is
        told to end, calls of other seeds end too, and none begins.
        """
        seeds, (shared, waves) = self.seeds, self.waves
        self._call(
            ["--stop-stage", "4", "--experiment", ",".join(self.experiments), "--conf-dir", self.conf,
             "--exp-dir", self.folder / "exp", "--data-dir", self.folder / "data"]
        )  # fmt: skip
        (self.folder / "data" / TARGETS).mkdir(exist_ok=True)
        if shared:
            self._run_seed(self.first, shared)
        with ThreadPoolExecutor(jobs) as pool:
            try:
                calls = [pool.submit(self._run_seed, seed, self._of_seed(seed, waves)) for seed in seeds]
                for done in as_completed(calls):
                    done.result()
            except BaseException:
                self._calls.end()
                raise

    def _of_seed(self, seed: int, waves: Sequence[Sequence[str]]) -> list[list[str]]:
        """The waves with what is trained with this seed."""
        own = [[name for name in wave if seed in self.settings.seeds_of(name)] for wave in waves]
        return [wave for wave in own if wave]

    def _run_seed(self, seed: int, waves: Sequence[Sequence[str]]) -> None:
        exp = self.exp(seed)
        data, conf = exp.with_name("data"), exp.with_name("conf")
        data.mkdir(parents=True, exist_ok=True)
        self._write(conf, {name: self.first if name in self.settings.shared else seed for name in self.experiments})
        for path in (self.folder / "data").iterdir():
            if path.name not in OF_A_SEED and not os.path.lexists(data / path.name):
                (data / path.name).symlink_to(path.resolve())
        if seed != self.first:
            self._link_shared(exp, data)
        for names in waves:
            last = max(LABELLING if name in self._labelling else self.experiments[name].stage for name in names)
            teachers = [each.teacher.experiment for name in names if (each := self.experiments[name]).teacher]
            called = dict.fromkeys([*teachers, *names])  # teachers for stage 7
            where = ["--conf-dir", conf, "--exp-dir", exp, "--data-dir", data]
            self._call(["--stage", "5", "--stop-stage", last, "--experiment", ",".join(called), *where])
            if decoded := [name for name in names if self._decodes(name)]:
                for stage in self.settings.stages:
                    self._call(["--stage", stage, "--stop-stage", stage, "--experiment", ",".join(decoded), *where])

    def _link_shared(self, exp: Path, data: Path) -> None:
        """Give a seed what is shared and complete: experiments, what they started from, their units and lattices."""
        first = self.exp(self.first)
        for name in self.settings.shared:
            experiment = self.experiments[name]
            for folder in filter(None, (name, experiment.init)):
                _link(exp / folder, first / folder)
            _link(data / "num" / name, first.with_name("data") / "num" / name)
            if experiment.units is not None:
                units = Path("units", experiment.units_folder)
                _link(data / units, first.with_name("data") / units)

    def _write(self, conf: Path, seeds: Mapping[str, int]) -> None:
        """Write the set's YAML files, with the seeds that are given."""
        mini = self.recipe / "conf" / "mini"
        small = "true" in (self.settings.options.get(option) for option in ("mini", "rehearse"))
        source = mini if small and mini.is_dir() else mini.parent
        conf.mkdir(parents=True, exist_ok=True)
        for name, own in self.settings.each():
            base = read(source / str(own.pop("base", f"{name}.yaml")))
            seed = {"seed": seeds[name]} if name in seeds else {}
            write_text(conf / f"{name}.yaml", yaml.safe_dump({**merged(base, own), **seed}, sort_keys=False))
        for path in (source / name for name in OTHERS):
            if path.is_file():
                write_text(conf / path.name, yaml.safe_dump(read(path), sort_keys=False))

    def _call(self, options: Sequence[object]) -> None:
        own = [word for key, value in self.settings.options.items() for word in (f"--{key}", value)]
        own += [word for setting in self.settings.settings for word in ("--set", setting)]
        own += ["--corpus-dir", self.corpus_dir] if self.corpus_dir else []
        command = [str(self.recipe / "run.sh"), "--nj", self.nj, *own, *options]
        words = list(map(str, command))
        log.info("%s", " ".join(words))
        if status := self._calls.run(words):
            raise RuntimeError(f"{' '.join(words)}: status {status}; the same call of this tool continues")

    def status(self) -> Table:
        """Every experiment: what each seed's is at, and minutes of training: spent, and expected to come.

        Raises ValueError as `waves` does.
        """
        _ = self.waves
        results = {(name, seed): self._result(name, seed)
                   for name in self.experiments for seed in self.seeds_of(name)}  # fmt: skip
        pace = [each.wall_s / each.audio_hours for each in results.values() if each and each.audio_hours]
        rows, spent, left = [], 0.0, 0.0
        for name, experiment in self.experiments.items():
            own = [results[name, seed] for seed in self.seeds_of(name)]
            took = [each.wall_s for each in own if each]
            hours = experiment.optim.updates * experiment.data.max_duration * experiment.optim.accumulate / 3600
            one = fmean(took) if took else hours * fmean(pace) if pace and hours else None
            to_come = None if one is None else one * own.count(None)
            rows.append((name, *(self._state(name, seed) for seed in self.settings.seeds),
                         number(sum(took) / 60, 1), number(None if to_come is None else to_come / 60, 1)))  # fmt: skip
            spent, left = spent + sum(took), left + (to_come or 0.0)
        rows.append(("all", *("" for _ in self.settings.seeds), number(spent / 60, 1), number(left / 60, 1)))
        head = ("experiment", *(f"seed {seed}" for seed in self.settings.seeds), "spent/min", "to come/min")
        return Table(head, tuple(rows))

    def _result(self, name: str, seed: int) -> TrainingResult | None:
        path = self.exp(seed) / name / RESULT
        return TrainingResult.read(path) if path.is_file() else None

    def _state(self, name: str, seed: int) -> str:
        if seed not in self.settings.seeds_of(name):
            return "shared" if name in self.settings.shared else "-"
        if seed not in self.seeds_of(name):
            return "elsewhere"
        folder = self.exp(seed) / name
        if not (folder / RESULT).is_file():
            return "begun" if folder.is_dir() else "to come"
        return "done" if decoding_files(folder) or not self._decodes(name) else "trained"

    def _decodes(self, name: str) -> bool:
        return self.experiments[name].recognises or self.experiments[name].transduces


def _link(link: Path, target: Path) -> None:
    """Link a stage's complete folder where nothing is in the link's place."""
    if (target / DONE).is_file() and not os.path.lexists(link):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target.resolve())


def levels(experiments: Mapping[str, Experiment]) -> Iterator[list[str]]:
    """Names in groups, each of experiments that build on those of groups before it.

    Raises ValueError where experiments build on each other in a circle.
    """
    waiting = {name: {*_sources(each)} & experiments.keys() for name, each in experiments.items()}
    while waiting:
        ready = [name for name, sources in waiting.items() if not sources & waiting.keys()]
        if not ready:
            raise ValueError(f"experiments build on each other in a circle: {', '.join(waiting)}")
        yield ready
        waiting = {name: sources for name, sources in waiting.items() if name not in ready}


def _sources(experiment: Experiment) -> Iterator[str]:
    """Names of what an experiment starts from, learns from and is probed by."""
    others = (experiment.teacher.experiment if experiment.teacher else None,
              experiment.units.experiment if experiment.units else None)  # fmt: skip
    yield from filter(None, (experiment.init, experiment.probe, *others))
