"""Load a checkpoint of another library into a recogniser, strictly, with a list of where each tensor is from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distill.config.model import Model
from distill.models.pretrained.names import HEAD, listed
from distill.models.pretrained.sources import Checkpoint
from distill.models.recogniser import Recogniser, build_model

log = logging.getLogger(__name__)

SECOND = {"ctc.weight": HEAD[0], "ctc.bias": HEAD[1]}
"""The CTC output of a model that has one is initialised from the same prediction layer."""
OWN = ("encoder.mask_embedding",)
"""Not in every checkpoint: initialised anew then, with a line in the list."""
ABOUT_SHAPE = ("front_end", "encoder")
NOT_SHAPE = (
    "dropout", "attention_dropout", "activation_dropout", "input_dropout", "layer_drop", "layer_grad_scale",
    "feature_grad_mult", "first", "mels", "norm_eps",
)  # fmt: skip
NOT_THEIRS = ("transducer.", "gates.", "head.shared_projection.")
"""Beginnings of names that no published checkpoint has: initialised anew, with a line in the list."""


@dataclass(frozen=True)
class Imported:
    """The recogniser, its outputs, a line for every tensor, with its origin, and for every unused one.

    heads: as in `Checkpoint`. new_head: why its prediction layer is drawn anew; empty where it is the checkpoint's.
    """

    model: Recogniser
    heads: Mapping[str, torch.Tensor]
    outputs: tuple[str, ...]
    lines: tuple[str, ...]
    new_head: str


def build_imported(
    checkpoint: Checkpoint, settings: Model | None, outputs: Sequence[str] | None, seed: int = 0
) -> Imported:
    """A recogniser with a checkpoint's weights.

    settings: of the wanted model (None: the checkpoint's own). outputs: names of its outputs (None: the
    checkpoint's units, blank first). The prediction layer is kept where all outputs are among the checkpoint's
    units, else a new one is drawn. Raises ValueError naming settings that differ, and tensors that are missing,
    unknown or of another shape.
    """
    wanted = fitted(checkpoint, settings)
    if outputs is None:
        outputs = checkpoint.outputs
        if outputs is None:
            raise ValueError(
                f"{checkpoint.source} has no prediction layer with known units; name a fine-tuned model with its"
                " vocab.json"
            )
    model = build_model(wanted, len(outputs), seed)
    rows, reason = head_rows(checkpoint, outputs)
    values = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in HEAD}
    if rows is not None:
        second = SECOND if model.ctc is not None else {}
        values |= {name: checkpoint.tensors[second.get(name, name)][rows] for name in (*HEAD, *second)}
    _check(checkpoint, model, values)
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in values.items():
            own[name].copy_(tensor)
    log.info("%s: prediction layer %s", checkpoint.source, "kept" if rows is not None else f"new: {reason}")
    lines = tuple(_lines(checkpoint, own, values, reason))
    return Imported(model, checkpoint.heads, tuple(outputs), lines, reason)


def head_rows(checkpoint: Checkpoint, outputs: Sequence[str]) -> tuple[list[int] | None, str]:
    """Rows of the checkpoint's prediction layer that are our outputs; None and the reason for a new layer."""
    if not all(name in checkpoint.tensors for name in HEAD):
        return None, "it has none"
    if checkpoint.units is None:
        return None, "its units are not known (no vocab.json, dict.*.txt or labels.txt beside it)"
    if len(checkpoint.units) != len(checkpoint.tensors[HEAD[0]]):
        return None, f"{len(checkpoint.units)} units are listed, but it has {len(checkpoint.tensors[HEAD[0]])} rows"
    rows = {unit: row for row, unit in enumerate(checkpoint.units)}
    missing = [unit for unit in outputs if unit not in rows]
    if missing:
        return None, f"our outputs {listed(missing, 5)} are not among its units"
    return [rows[unit] for unit in outputs], ""


def fitted(checkpoint: Checkpoint, settings: Model | None) -> Model:
    """The wanted settings if the checkpoint agrees with them; settings that it does not state are taken from them."""
    if settings is None:
        if checkpoint.shape.assumed:
            log.info("%s does not state, so assumed: %s", checkpoint.source, checkpoint.shape.assumed)
        return checkpoint.shape.settings
    different = differences(checkpoint, settings)
    if different:
        pairs = (f"model.{key} is {ours!r}, but the checkpoint has {theirs!r}" for key, ours, theirs in different)
        raise ValueError(f"{checkpoint.source} does not fit the experiment's settings: {'; '.join(pairs)}")
    return settings


def differences(checkpoint: Checkpoint, settings: Model) -> list[tuple[str, Any, Any]]:
    """(key, wanted, the checkpoint's) of each setting that decides shape or function and that the checkpoint states."""
    theirs, ours, different = checkpoint.shape.settings.model_dump(), settings.model_dump(), []
    assumed = dict(checkpoint.shape.assumed)
    for part in ABOUT_SHAPE:
        for key, value in theirs[part].items():
            name, wanted = f"{part}.{key}", ours[part][key]
            if key in NOT_SHAPE or name in assumed or value == wanted:
                continue
            if key.startswith("position_") and settings.encoder.positions == "sinusoid":  # of the convolution
                continue
            if key == "waveform_eps" and settings.front_end.waveform != "utterance":  # nothing reads it
                continue
            if key == "norm_layers" and len(settings.front_end.layers) == 1:  # the first is all of them
                continue
            strides_assumed = name == "front_end.layers" and "front_end.strides" in assumed
            if strides_assumed and [layer[:2] for layer in value] == [layer[:2] for layer in wanted]:
                continue
            different.append((name, wanted, value))
    return different


def _check(checkpoint: Checkpoint, model: Recogniser, values: Mapping[str, torch.Tensor]) -> None:
    """ValueError naming tensors that are missing, too many, or of another shape."""
    own, origin = model.state_dict(), checkpoint.origin
    optional = {*OWN, *HEAD, *SECOND, "front_end.gain"}
    missing = [name for name in own if name not in values and name not in optional and not name.startswith(NOT_THEIRS)]
    extra = [f"{origin[name]} ({name})" for name in values if name not in own]
    shapes = [
        f"{origin[name]} has {tuple(values[name].shape)}, expected {tuple(own[name].shape)}"
        for name in values
        if name in own and values[name].shape != own[name].shape
    ]
    problems = [
        f"{len(names)} tensors {what}: {listed(names)}"
        for what, names in (("are missing", missing), ("have no place", extra), ("have another shape", shapes))
        if names
    ]
    if problems:
        raise ValueError(f"{checkpoint.source}: {'; '.join(problems)}")


def _lines(
    checkpoint: Checkpoint, own: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor], reason: str
) -> list[str]:
    lines = [f"copied\t{name}\t{checkpoint.origin[SECOND.get(name, name)]}" for name in own if name in values]
    lines += [f"copied\t{name}\t{checkpoint.origin[name]}" for name in checkpoint.heads]
    new = [name for name in own if name not in values and name != "front_end.gain"]
    lines += [f"initialised anew{f' ({reason})' if name in (*HEAD, *SECOND) else ''}\t{name}\t" for name in new]
    unused = [checkpoint.origin[name] for name in checkpoint.tensors if name not in values]
    lines += [f"not taken over\t\t{name}" for name in unused]
    lines += [f"left behind ({count} numbers)\t\t{name}" for name, count in checkpoint.left.items()]
    lines += [f"assumed\t{key}\t{value}" for key, value in checkpoint.shape.assumed.items()]
    return lines
