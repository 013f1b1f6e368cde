"""Stage 5: a random or imported model as epoch 0 of an experiment."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import yaml

from distill.config.experiment import Experiment
from distill.files import write_text
from distill.models import checkpoint
from distill.models.pretrained import build_imported, read_checkpoint
from distill.models.recogniser import Recogniser, build_model, count_parameters

log = logging.getLogger(__name__)


def write_random(experiment: Experiment, outputs: Sequence[str], folder: Path) -> None:
    """Random weights drawn from the experiment's seed."""
    _write(experiment, build_model(experiment.model, len(outputs), experiment.seed), outputs, folder)


def write_pretrained(experiment: Experiment, outputs: Sequence[str], folder: Path) -> None:
    """Weights of `experiment.pretrained`, and import.tsv: the source of every tensor.

    Raises what `read_checkpoint` and `build_imported` raise.
    """
    assert experiment.pretrained is not None
    imported = build_imported(read_checkpoint(experiment.pretrained), experiment.model, outputs, experiment.seed)
    _write(experiment, imported.model, outputs, folder)
    write_text(folder / "import.tsv", "".join(line + "\n" for line in imported.lines))


def import_folder(source: str, outputs: Sequence[str] | None, folder: Path, name: str) -> None:
    """Any checkpoint as an experiment folder of its own; model.yaml lists its settings.

    outputs: names of the model's outputs; None: the units of the checkpoint's own prediction layer.
    """
    content = read_checkpoint(source)
    imported = build_imported(content, None, outputs)
    units = outputs if outputs is not None else content.units
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
    non_default = imported.model.settings.model_dump(mode="json", exclude_defaults=True)
    write_text(folder / "model.yaml", yaml.safe_dump({"model": non_default}, sort_keys=False))
    write_text(folder / "import.tsv", "".join(line + "\n" for line in imported.lines))
    _write(experiment, imported.model, units, folder)


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
