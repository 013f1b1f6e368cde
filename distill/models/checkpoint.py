"""Checkpoints with weights, settings and units; written atomically, read without executing their content."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from distill.config.experiment import Experiment
from distill.config.losses import Hubert
from distill.files import replacing
from distill.models.codes import CodeHead
from distill.models.recogniser import Recogniser, build_model

FORMAT = "distill-asr/1"
RENAMED = {"head.through.weight": "head.shared_projection.weight"}  # parameters of older checkpoints


def save(path: Path, content: dict[str, Any], earlier: Path | None = None) -> None:
    """Write a checkpoint whole or not at all; raises OSError with file and way out where the disk is full.

    earlier: the new name of the checkpoint that `path` replaces; at every moment one of the two names is a whole one.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save({"format": FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())
        if earlier is not None and path.exists():
            path.replace(earlier)


def load(path: Path, map_location: str | torch.device = "cpu", checked: bool = False) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it; raises FileNotFoundError or ValueError.

    checked: compare all its parts with their checksums, which torch does not.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; has this experiment been trained? (run.sh --stage 5..9)")
    try:
        if checked:
            with zipfile.ZipFile(path) as parts:
                if damaged := parts.testzip():
                    raise ValueError(f"wrong checksum of its part {damaged}")
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises many kinds for cut, foreign or unsafe files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: unreadable checkpoint ({reason}); put back a good copy, or train again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: not a checkpoint of this project (expected format '{FORMAT}')")
    model = content.get("model")
    if isinstance(model, dict):
        content["model"] = {RENAMED.get(name, name): value for name, value in model.items()}
    return content


def epoch_paths(folder: Path) -> dict[int, Path]:
    """Epoch checkpoints of an experiment by number."""
    names = ((re.fullmatch(r"epoch-(\d+)\.pt", path.name), path) for path in folder.glob("epoch-*.pt"))
    return dict(sorted((int(match[1]), path) for match, path in names if match))


def average(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of state dicts, in float64; integer tensors come from the last."""
    mean = dict(states[-1])
    for name, value in mean.items():
        if value.is_floating_point():
            mean[name] = (torch.stack([state[name].double() for state in states]).mean(0)).to(value.dtype)
    return mean


def load_recogniser(
    folder: Path, epoch: int | Literal["last", "best"] = "last", avg: int = 1
) -> tuple[Recogniser, Experiment, list[str], int]:
    """The trained model of an experiment folder, averaged over `avg` epochs up to `epoch`; best: by validation loss.

    Returns model in evaluation mode, its experiment, its units and the epoch. Raises
    FileNotFoundError or ValueError naming what is there.
    """
    paths = epoch_paths(folder)
    if not paths:
        raise FileNotFoundError(f"no epoch-N.pt in {folder}; train it first (run.sh --stage 5..9)")
    last = epoch if isinstance(epoch, int) else max(paths)
    if epoch == "best":
        last = load(paths[last])["progress"].get("best_epoch", 0)
    chosen = [n for n in paths if n <= last][-avg:]
    if last not in paths or len(chosen) < avg:
        raise ValueError(f"{folder} has epochs {list(paths)}; cannot average {avg} up to epoch {last}")
    contents = [load(paths[n]) for n in chosen]
    if "experiment" not in contents[-1]:
        raise ValueError(f"{paths[last]} is no recogniser's checkpoint; give the folder of an experiment")
    experiment = Experiment.parse(contents[-1]["experiment"], str(paths[last]))
    units = contents[-1]["units"]
    model = build_model(experiment.model, len(units))
    model.load_state_dict(average([content["model"] for content in contents]))
    return model.eval(), experiment, units, last


def load_epoch(folder: Path, epoch: Literal["last", "best"] = "last") -> dict[str, Any]:
    """The checkpoint of the last epoch of an experiment folder, or of its lowest validation loss.

    Raises FileNotFoundError where there is none.
    """
    paths = epoch_paths(folder)
    if not paths:
        raise FileNotFoundError(f"no epoch-N.pt in {folder}; train it first (run.sh --stage 5..9)")
    last = load(paths[max(paths)])
    best = max(paths) if epoch == "last" else last["progress"].get("best_epoch", 0)
    return last if best == max(paths) else load(folder / f"epoch-{best}.pt")


def load_code_head(folder: Path) -> CodeHead | None:
    """The head over codewords of a model that was pre-trained with one, as HuBERT is; None where there is none."""
    content = load_epoch(folder)
    state = code_head_state(content)
    if not state:
        return None
    settings = Experiment.parse(content["experiment"], str(folder)).objective.hubert or Hubert()
    (final_dim, dim), clusters = state["projection.weight"].shape, len(state["codewords"])
    head = CodeHead(dim, final_dim, clusters, settings.temperature, settings.block or -1)
    head.load_state_dict(state)
    return head.eval()


def code_head_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state of a checkpoint's head over codewords; empty where it has none."""
    prefix = "hubert.head."
    return {name.removeprefix(prefix): x for name, x in content["objective"].items() if name.startswith(prefix)}


def digest(what: object, states: Iterable[tuple[str, Tensor]]) -> str:
    """Names settings, or whatever repr shows of them, and tensors: 16 hexadecimal digits."""
    made = hashlib.sha256(repr(what).encode())
    for name, value in sorted(states, key=lambda state: state[0]):
        made.update(name.encode() + value.cpu().flatten().view(torch.uint8).numpy().tobytes())
    return made.hexdigest()[:16]


def weights_of(model: Recogniser) -> str:
    """The digest of a model's shape and weights."""
    return digest(model.settings.changed(), model.state_dict().items())


def export_weights(folder: Path, path: Path, epoch: int | Literal["last", "best"] = "last", avg: int = 1) -> int:
    """Write {"model": state dict}, averaged as `load_recogniser` does: icefall's pretrained.pt. Returns the epoch."""
    model, _, _, last = load_recogniser(folder, epoch, avg)
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save({"model": model.state_dict()}, file)
    return last
