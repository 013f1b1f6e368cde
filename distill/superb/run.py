"""A task of SUPERB with one experiment as upstream: s3prl's own recipe trains it and measures it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml

from distill.config.files import overridden
from distill.files import write_json
from distill.models import checkpoint
from distill.recipe.folders import put_aside
from distill.recipe.provenance import command_line, commit, hardware
from distill.report.results import SuperbResult
from distill.report.superb import FOLDER, METRICS
from distill.superb.qbe import QueryByExample
from distill.superb.real_speech import SOURCE
from distill.superb.tasks import Task
from distill.superb.upstream import load_upstream

log = logging.getLogger(__name__)

UPSTREAM = "distill_asr"
ASKED = "asked.json"
SOX = "install it (apt-get install libsox-dev); docs/interchange.md has KS without it"
KEEPS = "~/.cache/s3prl has what s3prl downloads; without a network, copy that folder from another machine"


def measure(task: Task, folder: Path, data: Path, overrides: Sequence[str], device: str) -> SuperbResult:
    """Train and evaluate a task; what is finished is read, what was interrupted continues from s3prl's checkpoint.

    folder: of a trained experiment; superb/TASK.json and superb/TASK, s3prl's folder, are written into it. overrides:
    settings of s3prl's recipe, "a.b=value". Raises ValueError without s3prl, for a setting of another form, and where
    s3prl fails; FileNotFoundError for an untrained experiment and for data of another layout.
    """
    runs = [task.data(data, run) for run in task.runs]
    model, _, _, epoch = checkpoint.load_recogniser(folder)
    weights = checkpoint.weights_of(model)
    asked: dict[str, Any] = {"weights": weights, "overrides": list(overrides), "data": str(data.resolve())}
    path, place = folder / FOLDER / f"{task.name}.json", folder / FOLDER / task.name
    if path.is_file():
        earlier = SuperbResult.read(path)
        if asked == {"weights": earlier.weights, "overrides": list(earlier.overrides), "data": earlier.data}:
            log.info("%s of %s is finished: %s", task.name, folder, path)
            return earlier
    recipe = recipe_of(task)
    claim(place, asked)
    ours = {
        "device": device, "num_workers": min(6, os.cpu_count() or 1),
        "build_upstream": {"name": UPSTREAM, "path_or_url": str(folder.resolve())},
    }  # fmt: skip
    settings = fitted(overridden(recipe.default_config() | ours, overrides))
    found = [figures(task, recipe, place / str(number), settings, run) for number, run in enumerate(runs)]
    result = SuperbResult(
        experiment=folder.resolve().name,
        task=task.name,
        figures={name: fmean(run[name] for run in found) for name in found[0]},
        runs=tuple(found),
        epoch=epoch,
        weights=weights,
        overrides=tuple(overrides),
        data=asked["data"],
        own_data=(data / SOURCE).is_file(),
        hardware=hardware(torch.device(device)),
        command=command_line(),
        commit=commit(),
    )
    result.write(path)
    return result


def claim(place: Path, asked: Mapping[str, Any]) -> None:
    """Make s3prl's folder ready: one of other weights, settings or data is put aside, half a checkpoint is removed."""
    mark = place / ASKED
    if place.exists() and (not mark.is_file() or yaml.safe_load(mark.read_text()) != asked):
        log.warning("%s is of other weights, settings or data; it is now %s", place, put_aside(place))
    place.mkdir(parents=True, exist_ok=True)
    write_json(mark, asked)
    for step in place.glob("*/train/step_*"):
        if not (step / "config.yaml").is_file():  # s3prl writes it last
            log.warning("%s is cut short and removed", step)
            shutil.rmtree(step)


def recipe_of(task: Task) -> Any:
    """s3prl's recipe of a task, with our models among s3prl's upstreams; raises ValueError without s3prl."""
    try:
        from s3prl import hub, problem
    except ImportError as error:
        raise ValueError(f"SUPERB needs s3prl, in an environment of its own: ./tools/superb.sh ({error})") from None
    setattr(hub, UPSTREAM, load_upstream)
    return QueryByExample() if task.name == "QbE" else getattr(problem, task.recipe)()


def figures(
    task: Task, recipe: Any, place: Path, settings: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, float]:
    """One run of s3prl's recipe: its figures by name, in %."""
    from omegaconf import OmegaConf

    complete = {**settings, "target_dir": str(place), "prepare_data": {**settings["prepare_data"], **data}}
    try:
        recipe.run(**OmegaConf.to_container(OmegaConf.create(complete), resolve=True, throw_on_missing=True))
    except Exception as error:  # s3prl and what it calls raise whatever it comes to
        reason = str(error).strip().partition("\n")[0][:300] or "an assertion without a message"
        way_out = f"; {SOX if 'libsox' in reason else KEEPS}" if isinstance(error, OSError) else ""
        raise ValueError(
            f"{task.name}: s3prl's {task.recipe} ends with {type(error).__name__}: {reason}{way_out}"
        ) from error
    written = sorted(place.glob(task.result))
    if len(written) != 1:
        raise ValueError(f"{task.name}: s3prl's {task.recipe} left {len(written)} files {place / task.result}, not one")
    content = yaml.safe_load(written[0].read_text())
    return {m.figure: task.unit * float(content[m.figure]) for m in METRICS if m.task == task.name}


def fitted(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with at least one validation and checkpoint in a training that is shorter than their steps."""
    if "train" not in settings:
        return settings
    train = dict(settings["train"])
    for name in ("save_step", *(("eval_step",) if train["valid_metric"] else ())):
        train[name] = min(train[name], train["total_steps"])
    return settings | {"train": train}
