"""A task of SUPERB with one experiment as upstream: s3prl's own recipe trains it and measures it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
import yaml

from distill.config.files import overridden
from distill.config.names import hint
from distill.data.augment import utterance_rng
from distill.data.distortions import Distorter
from distill.files import write_json
from distill.models import checkpoint
from distill.recipe.contents import noise_hashes
from distill.recipe.folders import put_aside
from distill.recipe.provenance import command_line, commit, hardware
from distill.report.results import Condition, SuperbResult
from distill.report.runs import SUPERB
from distill.report.superb import METRICS
from distill.superb.qbe import QueryByExample
from distill.superb.real_speech import is_own
from distill.superb.tasks import Task, without_conditions
from distill.superb.upstream import load_upstream

log = logging.getLogger(__name__)

UPSTREAM = "distill_asr"
ASKED = "asked.json"
SOX = "install it (apt-get install libsox-dev); docs/interchange.md has KS without it"
KEEPS = "~/.cache/s3prl has what s3prl downloads; without a network, copy that folder from another machine"


@dataclass(frozen=True)
class Probe:
    """How tasks are measured.

    overrides: settings of s3prl's recipe, "a.b=value". last_state: s3prl learns on the last hidden states alone, in
    place of a weighted sum of all. epoch: of the experiment. conditions: of the test recordings, by name, besides that
    without distortions.
    """

    overrides: Sequence[str] = ()
    device: str = "cpu"
    last_state: bool = False
    epoch: Literal["last", "best"] = "last"
    conditions: Mapping[str, Distorter] = field(default_factory=dict)


def measure(task: Task, folder: Path, data: Path, probe: Probe) -> SuperbResult:
    """Train and evaluate a task; what is finished is read, what was interrupted continues from s3prl's checkpoint.

    folder: of a trained experiment; superb/TASK.json and superb/TASK, s3prl's folder, are written into it. New
    conditions are evaluated without another training. Raises ValueError without s3prl, for a setting of another form,
    conditions of a task without them, and where s3prl fails; FileNotFoundError for an untrained experiment and for
    data of another layout.
    """
    if probe.conditions and task.evaluation is None:
        raise ValueError(without_conditions(task))
    runs = [task.data(data, run) for run in task.runs]
    model, _, _, epoch = checkpoint.load_recogniser(folder, probe.epoch)
    weights = checkpoint.weights_of(model)
    asked = identity(weights, probe.overrides, str(data.resolve()), probe.last_state)
    path, place = folder / SUPERB / f"{task.name}.json", folder / SUPERB / task.name
    earlier = earlier_result(path, asked)
    known = dict(earlier.conditions) if earlier else {}
    new = {name: each for name, each in probe.conditions.items() if name not in known or differs(known[name], each)}
    if earlier and not new:
        log.info("%s of %s is finished: %s", task.name, folder, path)
        return earlier
    recipe = recipe_of(task)
    extra = {"last_state": probe.last_state, "epoch": probe.epoch}
    ours = {
        "device": probe.device, "num_workers": min(6, os.cpu_count() or 1),
        "build_upstream": {"name": UPSTREAM, "path_or_url": str(folder.resolve()), "extra_conf": extra},
    }  # fmt: skip
    defaults = recipe.default_config() | ours
    settings = overridden(defaults, probe.overrides)
    check_kinds(settings, defaults)
    settings = fitted(settings)
    claim(path, place, asked)
    found = [figures(task, recipe, place / str(number), settings, run, new) for number, run in enumerate(runs)]
    means = means_over(found)
    measured = {
        name: Condition(settings=each.settings.resolved(), noises=noises_of(each), figures=means[name])
        for name, each in new.items()
    }
    result = SuperbResult(
        experiment=folder.resolve().name,
        task=task.name,
        figures=means[""],
        runs=tuple(run[""] for run in found),
        epoch=epoch,
        weights=weights,
        overrides=tuple(probe.overrides),
        last_state=probe.last_state,
        data=asked["data"],
        own_data=is_own(data),
        conditions=known | measured,
        hardware=hardware(torch.device(probe.device)),
        command=command_line(),
        commit=commit(),
    )
    result.write(path)
    return result


def differs(earlier: Condition, now: Distorter) -> bool:
    """Whether a condition is measured anew: for other settings or, where noises are listed, other recordings."""
    return earlier.settings != now.settings.resolved() or bool(earlier.noises and earlier.noises != noises_of(now))


def noises_of(distorter: Distorter) -> dict[str, str]:
    return noise_hashes(distorter.folder, distorter.settings.noises.values())


def earlier_result(path: Path, asked: Mapping[str, Any]) -> SuperbResult | None:
    """The result in a file; None where there is none, or one of other weights, settings or data."""
    if not path.is_file():
        return None
    found = SuperbResult.read(path)
    own = identity(found.weights, found.overrides, found.data, found.last_state)
    return found if own == asked else None


def identity(weights: str, overrides: Sequence[str], data: str, last_state: bool) -> dict[str, Any]:
    """What a measurement depends on; what all earlier ones had is left out.

    Overrides stand in the order of their names, of which the last one counts.
    """
    last = {override.partition("=")[0]: override for override in overrides}
    own = {"weights": weights, "overrides": [last[name] for name in sorted(last)], "data": data}
    return own | ({"last_state": True} if last_state else {})


def means_over(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over runs of the figures of each condition."""
    return {
        condition: {name: fmean(run[condition][name] for run in runs) for name in figures}
        for condition, figures in runs[0].items()
    }


def claim(result: Path, place: Path, asked: Mapping[str, Any]) -> None:
    """Make s3prl's folder ready: one of other weights, settings or data is put aside, half a checkpoint is removed.

    result: file with the figures, which goes with its folder.
    """
    mark = place / ASKED
    before = {"last_state": False, **yaml.safe_load(mark.read_text())} if mark.is_file() else None
    if place.exists() and (before is None or identity(**before) != asked):
        aside = put_aside(place)
        log.warning("%s is of other weights, settings or data; it is now %s", place, aside)
        if result.is_file():
            result.rename(aside / result.name)
    place.mkdir(parents=True, exist_ok=True)
    write_json(mark, asked)
    for step in place.glob("*/train/step_*"):
        if not (step / "config.yaml").is_file():  # s3prl writes it last
            log.warning("%s is cut short and removed", step)
            shutil.rmtree(step)


def check_kinds(settings: Mapping[str, Any], defaults: Mapping[str, Any], place: str = "") -> None:
    """Raises ValueError for a part that s3prl's recipe does not have, and for a value of another kind than its own."""
    for name, value in settings.items():
        if name not in defaults:
            if not place:
                raise ValueError(f"--set {name}: s3prl's recipe has no such part{hint(name, defaults)}")
            continue
        own = defaults[name]
        if isinstance(own, Mapping) and isinstance(value, Mapping):
            check_kinds(value, own, f"{place}{name}.")
        elif isinstance(own, Mapping) or (isinstance(own, (int, float)) and not isinstance(value, (int, float))):
            wanted = "settings, as KEY=VALUE below it" if isinstance(own, Mapping) else f"a number, as {own}"
            raise ValueError(f"--set {place}{name}: {wanted} is expected (got {value!r})")


def recipe_of(task: Task) -> Any:
    """s3prl's recipe of a task, with our models among s3prl's upstreams; raises ValueError without s3prl."""
    try:
        from s3prl import hub, problem
    except ImportError as error:
        raise ValueError(f"SUPERB needs s3prl, in an environment of its own: ./tools/superb.sh ({error})") from None
    setattr(hub, UPSTREAM, load_upstream)
    return QueryByExample() if task.name == "QbE" else getattr(problem, task.recipe)()


def figures(
    task: Task, recipe: Any, place: Path, settings: Mapping[str, Any], data: Mapping[str, Any],
    conditions: Mapping[str, Distorter],
) -> dict[str, dict[str, float]]:  # fmt: skip
    """One run of s3prl's recipe: its figures in % by name, of each condition; "" is the recordings as they are."""
    complete = {**settings, "target_dir": str(place), "prepare_data": {**settings["prepare_data"], **data}}
    found = {"": one_run(task, recipe, place, complete)}
    for name, distorter in conditions.items():
        with distorted(recipe, distorter):
            found[name] = one_run(task, recipe, place, complete | {"start": task.evaluation})
    return found


def one_run(task: Task, recipe: Any, place: Path, settings: Mapping[str, Any]) -> dict[str, float]:
    """The figures that a run of s3prl's recipe leaves in its folder; raises ValueError where it fails."""
    from omegaconf import OmegaConf

    try:
        recipe.run(**OmegaConf.to_container(OmegaConf.create(settings), resolve=True, throw_on_missing=True))
    except Exception as error:  # s3prl and what it calls raise whatever it comes to
        reason = str(error).strip().partition("\n")[0][:300] or "an assertion without a message"
        way_out = f"; {SOX if 'libsox' in str(error) else KEEPS}" if isinstance(error, OSError) else ""
        raise ValueError(
            f"{task.name}: s3prl's {task.recipe} ends with {type(error).__name__}: {reason}{way_out}"
        ) from error
    written = sorted(place.glob(task.result))
    if len(written) != 1:
        raise ValueError(f"{task.name}: s3prl's {task.recipe} left {len(written)} files {place / task.result}, not one")
    content = yaml.safe_load(written[0].read_text())
    return {m.figure: task.unit * float(content[m.figure]) for m in METRICS if m.task == task.name}


@contextmanager
def distorted(recipe: Any, distorter: Distorter) -> Iterator[None]:
    """s3prl's recipe with test recordings under a condition: each is the same for every model."""
    build = recipe.build_collate_fn

    def build_distorting(settings: Mapping[str, Any], mode: str) -> Callable[[Sequence[Mapping]], Any]:
        collate = build(settings, mode)
        return collate if mode != "test" else lambda samples: collate([changed(each, distorter) for each in samples])

    recipe.build_collate_fn = build_distorting
    try:
        yield
    finally:
        del recipe.build_collate_fn  # that of its class again


def changed(sample: Mapping[str, Any], distorter: Distorter) -> dict[str, Any]:
    """A sample of s3prl with its waveform x, (N,) or (N, 1), distorted."""
    shape, key = sample["x"].shape, str(sample["unique_name"])
    wave, _ = distorter(sample["x"].flatten().numpy(), utterance_rng(0, 0, key))
    return {**sample, "x": torch.from_numpy(wave).view(shape)}


def fitted(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with at least one validation and checkpoint in a training that is shorter than their steps.

    Raises ValueError where its last steps would be neither stored nor validated: a further call would go on from there.
    """
    if "train" not in settings:
        return settings
    train = dict(settings["train"])
    for name in ("save_step", *(("eval_step",) if train["valid_metric"] else ())):
        train[name] = min(train[name], train["total_steps"])
        if train["total_steps"] % train[name]:
            raise ValueError(
                f"train.total_steps {train['total_steps']} is no multiple of train.{name} {train[name]}: the last steps"
                f" would be left out; give another with --set train.{name}=N"
            )
    return settings | {"train": train}
