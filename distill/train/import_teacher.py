"""Stage 5: a random or imported model as epoch 0 of an experiment."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from torch import Tensor

from distill.config.experiment import Experiment
from distill.files import write_text
from distill.models import checkpoint
from distill.models.pretrained import build_imported, read_checkpoint
from distill.models.recogniser import Recogniser, build_model, count_parameters

log = logging.getLogger(__name__)


def write_random(experiment: Experiment, outputs: Sequence[str], folder: Path) -> dict[str, int]:
    """Random weights drawn from the experiment's seed. Returns numbers of parameters (`count_parameters`)."""
    return _write(experiment, build_model(experiment.model, len(outputs), experiment.seed), outputs, folder)


def write_pretrained(experiment: Experiment, outputs: Sequence[str], folder: Path) -> dict[str, int]:
    """Weights of `experiment.pretrained`, and import.tsv: the source of every tensor. Returns as `write_random`.

    Raises what `read_checkpoint` and `build_imported` raise, and ValueError where an experiment that is not trained
    (stage 5) would have a new prediction layer.
    """
    assert experiment.pretrained is not None
    imported = build_imported(read_checkpoint(experiment.pretrained), experiment.model, outputs, experiment.seed)
    if not experiment.trained and experiment.recognises and imported.new_head:
        raise ValueError(
            f"{experiment.pretrained}: its prediction layer cannot be taken over: {imported.new_head}; it is not"
            " trained: give --units letters, or make it one of stage 6, or for hidden states alone give"
            " decoding.methods: []"
        )
    write_text(folder / "import.tsv", "".join(line + "\n" for line in imported.lines))
    return _write(experiment, imported.model, outputs, folder, imported.heads)


def import_folder(source: str, outputs: Sequence[str] | None, folder: Path, name: str) -> None:
    """Any checkpoint as an experiment folder of its own; model.yaml lists its settings.

    outputs: names of the model's outputs; None: the units of the checkpoint's own prediction layer.
    """
    imported = build_imported(read_checkpoint(source), None, outputs)
    experiment = Experiment(
        name=name, stage=5, description=f"imported from {source}", pretrained=source, model=imported.model.settings
    )
    folder.mkdir(parents=True, exist_ok=True)
    non_default = imported.model.settings.model_dump(mode="json", exclude_defaults=True)
    write_text(folder / "model.yaml", yaml.safe_dump({"model": non_default}, sort_keys=False))
    write_text(folder / "import.tsv", "".join(line + "\n" for line in imported.lines))
    _write(experiment, imported.model, imported.outputs, folder, imported.heads)


def _write(
    experiment: Experiment, model: Recogniser, outputs: Sequence[str], folder: Path, heads: Mapping[str, Tensor] = {}
) -> dict[str, int]:
    parameters = count_parameters(model)
    content = {
        "model": model.state_dict(),
        "objective": dict(heads),
        "experiment": experiment.resolved(),
        "units": list(outputs),
        "progress": {"updates": 0},
    }
    checkpoint.save(folder / "epoch-0.pt", content)
    log.info("%s: %s parameters", folder, parameters)
    return parameters
