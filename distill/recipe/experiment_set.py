"""Runs a set of experiments through its recipe's run.sh, and shows what is done, running and to come."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

import yaml

from distill.config.experiment import Experiment
from distill.config.experiment_set import ExperimentSet
from distill.config.files import merged, read
from distill.files import write_text
from distill.report.results import TrainingResult
from distill.report.runs import decoding_files
from distill.report.table import Table, number

log = logging.getLogger(__name__)

OF_A_SEED = ("num", "units")  # of a data-dir: made by experiments, so that each seed has its own
OTHERS = ("graphs.yaml", "lm.yaml")  # of a conf-dir, beside experiments
RESULT = "result.json"


@dataclass(frozen=True)
class SetRun:
    """A set and the folder that it is run in: conf (its YAML files), data, and for each seed exp and data.

    root: of the repository. nj: processes of a training. corpus_dir: where the corpus lies, empty for none.
    """

    settings: ExperimentSet
    root: Path
    folder: Path
    nj: int = 1
    corpus_dir: str = ""

    @property
    def recipe(self) -> Path:
        return self.root / "egs" / self.settings.corpus

    @property
    def conf(self) -> Path:
        return self.folder / "conf"

    def exp(self, seed: int) -> Path:
        """Folder of a seed's experiments."""
        return self.folder / f"seed-{seed}" / "exp"

    @cached_property
    def experiments(self) -> dict[str, Experiment]:
        """By name; their YAML files are written anew. Raises FileNotFoundError or ValueError for wrong ones."""
        mini = self.recipe / "conf" / "mini"
        source = mini if self.settings.options.get("mini") == "true" and mini.is_dir() else mini.parent
        self.conf.mkdir(parents=True, exist_ok=True)
        names = []
        for name, own in self.settings.each():
            base = read(source / str(own.pop("base", f"{name}.yaml")))
            write_text(self.conf / f"{name}.yaml", yaml.safe_dump(merged(base, own), sort_keys=False))
            names.append(name)
        for path in (source / name for name in OTHERS):
            if path.is_file():
                write_text(self.conf / path.name, yaml.safe_dump(read(path), sort_keys=False))
        return {name: Experiment.load(self.conf / f"{name}.yaml", self.settings.settings) for name in names}

    def run(self, jobs: int) -> None:
        """Run all that is not done, so many seeds at a time. Raises RuntimeError after the first call that fails."""
        waves = list(levels(self.experiments))
        self._call(["--stop-stage", "4", "--exp-dir", self.folder / "exp", "--data-dir", self.folder / "data"])
        with ThreadPoolExecutor(jobs) as pool:
            for done in [pool.submit(self._run_seed, seed, waves) for seed in self.settings.seeds]:
                done.result()

    def _run_seed(self, seed: int, waves: Sequence[Sequence[str]]) -> None:
        data = self.exp(seed).with_name("data")
        data.mkdir(parents=True, exist_ok=True)
        for path in (self.folder / "data").iterdir():
            if path.name not in OF_A_SEED and not os.path.lexists(data / path.name):
                (data / path.name).symlink_to(path.resolve())
        where = ["--exp-dir", self.exp(seed), "--data-dir", data, "--set", f"seed={seed}"]
        for names in waves:
            last = max(self.experiments[name].stage for name in names)
            teachers = [each.teacher.experiment for name in names if (each := self.experiments[name]).teacher]
            called = dict.fromkeys([*teachers, *names])  # teachers for stage 7
            self._call(["--stage", "5", "--stop-stage", last, "--experiment", ",".join(called), *where])
            if decoded := [name for name in names if self._decodes(name)]:
                for stage in self.settings.stages:
                    self._call(["--stage", stage, "--stop-stage", stage, "--experiment", ",".join(decoded), *where])

    def _call(self, options: Sequence[object]) -> None:
        own = [word for key, value in self.settings.options.items() for word in (f"--{key}", value)]
        own += [word for setting in self.settings.settings for word in ("--set", setting)]
        own += ["--corpus-dir", self.corpus_dir] if self.corpus_dir else []
        command = [str(self.recipe / "run.sh"), "--conf-dir", self.conf, "--nj", self.nj, *own, *options]
        words = list(map(str, command))
        log.info("%s", " ".join(words))
        if status := subprocess.run(words).returncode:
            raise RuntimeError(f"{' '.join(words)}: status {status}; the same call of this tool continues")

    def status(self) -> Table:
        """Every experiment: what each seed's is at, and minutes of training: spent, and expected to come."""
        results = {(name, seed): self._result(name, seed) for name in self.experiments for seed in self.settings.seeds}
        pace = [each.wall_s / each.audio_hours for each in results.values() if each and each.audio_hours]
        rows, spent, left = [], 0.0, 0.0
        for name, experiment in self.experiments.items():
            own = [results[name, seed] for seed in self.settings.seeds]
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
        folder = self.exp(seed) / name
        if not (folder / RESULT).is_file():
            return "begun" if folder.is_dir() else "to come"
        return "done" if decoding_files(folder) or not self._decodes(name) else "trained"

    def _decodes(self, name: str) -> bool:
        return self.experiments[name].recognises or self.experiments[name].transduces


def levels(experiments: Mapping[str, Experiment]) -> Iterator[list[str]]:
    """Names in groups, each of experiments that build on those of groups before it.

    Raises ValueError where experiments build on each other in a circle.
    """
    waiting = {name: {*_sources(each)} & experiments.keys() - {name} for name, each in experiments.items()}
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
