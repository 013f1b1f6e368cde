"""The three sources: Hugging Face folders, fairseq files, torchaudio state dicts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.models.pretrained import names
from distill.models.pretrained.files import plain, read_folder, read_json, read_pickle, read_tensors
from distill.models.pretrained.shapes import Said, Shape, said_by_fairseq, said_by_hugging_face, shape_of

log = logging.getLogger(__name__)

FAMILIES = ("wav2vec2", "hubert", "wavlm")
BLANK, BOUNDARY = "<blk>", "▁"


@dataclass(frozen=True)
class Checkpoint:
    """A model read from elsewhere: tensors by our names, {ours: theirs}, what was left behind, its shape and units."""

    source: str
    tensors: Mapping[str, Tensor]
    origin: Mapping[str, str]
    left: Mapping[str, int]  # name -> numbers in it
    shape: Shape
    units: tuple[str, ...] | None


def read_checkpoint(source: str) -> Checkpoint:
    """Read "hf:FOLDER_OR_NAME", "fairseq:FILE" or "torchaudio:FILE"; nothing in them is executed.

    Raises FileNotFoundError, or ValueError naming what is wrong: another family, a variant that is not
    built, tensors that are missing, unknown or of another shape.
    """
    readers = {"hf": _hugging_face, "fairseq": _fairseq, "torchaudio": _torchaudio}
    kind, colon, place = source.partition(":")
    if not colon or kind not in readers or not place:
        raise ValueError(f"source '{source}' is not one of hf:FOLDER_OR_NAME, fairseq:FILE, torchaudio:FILE")
    tensors, table, said = readers[kind](place)
    renamed, origin, left = names.rename(tensors, table, source)
    shape = shape_of(renamed, said, source)
    units = None if said.units is None else tuple(BOUNDARY if unit == "|" else unit for unit in said.units)
    return Checkpoint(source, renamed, origin, {name: tensors[name].numel() for name in left}, shape, units)


def _hugging_face(place: str) -> tuple[dict[str, Tensor], names.Table, Said]:
    folder = Path(place)
    if not folder.is_dir():
        folder = _download(place)
    config = read_json(folder / "config.json")
    if config is None:
        raise FileNotFoundError(f"{folder} has no config.json: not a Hugging Face folder")
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"{folder} is a model of family '{family}'; there are: {', '.join(FAMILIES)}")
    said = said_by_hugging_face(config, read_json(folder / "preprocessor_config.json") or {}, str(folder))
    vocabulary = read_json(folder / "vocab.json")
    if isinstance(vocabulary, dict):
        blank = config.get("pad_token_id", 0)
        said = replace(said, units=_in_order({BLANK if row == blank else u: row for u, row in vocabulary.items()}))
    return read_folder(folder), names.HUGGING_FACE, said


def _download(name: str) -> Path:
    """A model of the Hugging Face hub by its name, where there is a network."""
    way_out = f"there is no folder {name}; download the model elsewhere and name its folder"
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise FileNotFoundError(f"hf:{name}: {way_out}, or give a name on the hub such as facebook/hubert-base-ls960")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(f"hf:{name}: {way_out}, or pip install huggingface-hub to have it downloaded") from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "pytorch_model*.bin"]))
    except Exception as error:  # no network, no such name, no room: many kinds
        raise FileNotFoundError(f"hf:{name}: cannot be downloaded ({str(error).splitlines()[0]}); {way_out}") from None


def _fairseq(place: str) -> tuple[dict[str, Tensor], names.Table, Said]:
    path = Path(place)
    content = read_pickle(path, stubs=True)
    tensors = content.get("model") if isinstance(content, dict) else None
    if not isinstance(tensors, dict):
        raise ValueError(f"{path}: no 'model' inside, which a fairseq checkpoint has")
    settings = plain(content.get("cfg")) or plain(content.get("args")) or {}
    said = said_by_fairseq(settings if isinstance(settings, dict) else {}, str(path))
    lists = sorted(path.parent.glob("dict.*.txt"))
    if lists:
        symbols = [line.split()[0] for line in lists[0].read_text(encoding="utf-8").splitlines() if line.strip()]
        said = replace(said, units=(BLANK, "<pad>", "</s>", "<unk>", *symbols))  # its blank is <s>
    return _only_tensors(tensors, path), names.FAIRSEQ, said


def _only_tensors(values: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    wrong = [name for name, value in values.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f"{path}: not tensors: {names.listed(wrong)}")
    return dict(values)


def _torchaudio(place: str) -> tuple[dict[str, Tensor], names.Table, Said]:
    path = Path(place)
    labels = path.with_name("labels.txt")
    said = Said()
    if labels.is_file():  # the labels of a torchaudio bundle, one a line; its blank is "-"
        units = labels.read_text(encoding="utf-8").split()
        said = Said(units=tuple(BLANK if unit == "-" else unit for unit in units))
    return names.split_joined(read_tensors(path)), names.TORCHAUDIO, said


def _in_order(rows: Mapping[str, int]) -> tuple[str, ...] | None:
    """Units by their rows; None where rows are missing."""
    ordered = sorted(rows, key=rows.__getitem__)
    return tuple(ordered) if [rows[unit] for unit in ordered] == list(range(len(rows))) else None
