"""A model that has not been trained here, as epoch 0 of an experiment: random, or imported from elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import yaml

from distill.config.experiment import Experiment
from distill.config.model import Model
from distill.files import replacing
from distill.models import checkpoint
from distill.models.pretrained import build_imported, read_checkpoint
from distill.models.recogniser import Recogniser, count_parameters
from distill.models.transfer import build_model

log = logging.getLogger(__name__)


def write_random(experiment: Experiment, outputs: Sequence[str], folder: Path) -> None:
    """Random weights drawn from the experiment's seed."""
    _write(experiment, build_model(experiment.model, len(outputs), experiment.seed), outputs, folder)


def write_pretrained(experiment: Experiment, outputs: Sequence[str], folder: Path) -> None:
    """The weights that `experiment.pretrained` names, and import.tsv: where every tensor is from.

    Raises what `read_checkpoint` and `build_imported` raise.
    """
    assert experiment.pretrained is not None
    imported = build_imported(read_checkpoint(experiment.pretrained), experiment.model, outputs, experiment.seed)
    _write(experiment, imported.model, outputs, folder)
    _write_text(folder / "import.tsv", "".join(line + "\n" for line in imported.lines))


def import_folder(source: str, outputs: Sequence[str] | None, folder: Path, name: str) -> None:
    """Any checkpoint as an experiment folder of its own, its settings as they are found: model.yaml shows them.

    outputs: names of the model's outputs; None: the units of the checkpoint's own prediction layer.
    """
    found = read_checkpoint(source)
    imported = build_imported(found, None, outputs)
    units = outputs if outputs is not None else found.units
    assert units is not None  # build_imported refuses a checkpoint without
    experiment = Experiment.parse(
        {
            "name": name, "stage": 6, "description": f"imported from {source}", "pretrained": source,
            "model": imported.model.settings.model_dump(mode="json"), "objective": {"alpha": 1, "beta": 1},
            "optim": {"updates": 1},
        },
        source,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    _write_text(folder / "model.yaml", yaml.safe_dump({"model": told(imported.model.settings)}, sort_keys=False))
    _write_text(folder / "import.tsv", "".join(line + "\n" for line in imported.lines))
    _write(experiment, imported.model, units, folder)


def told(model: Model) -> dict:
    """Settings that differ from the defaults, as a YAML file would give them."""
    return model.model_dump(mode="json", exclude_defaults=True)


def _write(experiment: Experiment, model: Recogniser, outputs: Sequence[str], folder: Path) -> None:
    content = {
        "model": model.state_dict(),
        "objective": {},
        "experiment": experiment.resolved(),
        "units": list(outputs),
        "progress": {"updates": 0},
    }
    checkpoint.save(folder / "epoch-0.pt", content)
    log.info("%s: %s parameters", folder, count_parameters(model))


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
