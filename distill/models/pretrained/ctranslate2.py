"""Variables of a Whisper model in CTranslate2's binary format, version 6; nothing in a file is executed.

A file is, in little-endian order: its version u32; name of the model's kind; revision u32; number of variables u32; of
each its name, rank u8, dimensions u32, type u8, bytes u32 and values; number of aliases u32; of each its name and its
variable's. A name is its length u16, with the zero that ends it, and its bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

VERSION, KIND = 6, "WhisperSpec"
TYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
"""By their number in a file."""


class _Bytes:
    """A file's bytes, taken in sequence; ValueError behind the last."""

    def __init__(self, content: np.ndarray) -> None:
        self.content, self.place = content, 0

    def take(self, size: int) -> np.ndarray:
        if size > (rest := len(self.content) - self.place):
            raise ValueError(
                f"{size} bytes are expected after byte {self.place}, but {rest} follow: not the whole file"
            )
        self.place += size
        return self.content[self.place - size : self.place]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width).tobytes(), "little")

    def name(self) -> str:
        return self.take(self.number(2)).tobytes().removesuffix(b"\0").decode("utf-8")


def read_variables(folder: Path, prefix: str) -> dict[str, Tensor]:
    """Variables of model.bin, or of its parts model.bin.part1, model.bin.part2, …; quantised ones as float32.

    Those whose names do not begin with `prefix` are on the meta device, without their values. Raises
    FileNotFoundError, and ValueError for a file that is damaged, of another version or of another kind of model.
    """
    files = _files(folder)
    try:
        parts = [np.memmap(file, np.uint8, "r") for file in files]
        variables = _variables(_Bytes(np.concatenate(parts) if len(parts) > 1 else parts[0]), prefix)
        return _dequantised(variables)
    except ValueError as error:  # also of numpy, for an empty file
        raise ValueError(f"{', '.join(map(str, files))}: cannot be read as a CTranslate2 model: {error}") from None


def _files(folder: Path) -> list[Path]:
    """model.bin, or all of its parts in sequence."""
    if (folder / "model.bin").is_file():
        return [folder / "model.bin"]
    parts = {
        int(match[1]): path for path in folder.glob("*") if (match := re.fullmatch(r"model\.bin\.part(\d+)", path.name))
    }
    if not parts:
        raise FileNotFoundError(f"{folder} has no model.bin (nor model.bin.part1, model.bin.part2, …) of CTranslate2")
    if sorted(parts) != list(range(1, len(parts) + 1)):
        raise FileNotFoundError(f"{folder} has parts {sorted(parts)} of model.bin; expected all from 1 on")
    return [parts[number] for number in sorted(parts)]


def _variables(content: _Bytes, prefix: str) -> dict[str, Tensor]:
    if (version := content.number(4)) != VERSION:
        raise ValueError(f"binary version {version}; only {VERSION} is read")
    if (kind := content.name()) != KIND:
        raise ValueError(f"a model of kind {kind!r:.40}; only {KIND} is read")
    content.number(4)  # revision
    variables: dict[str, Tensor] = {}
    for _ in range(content.number(4)):
        name = content.name()
        variables[name] = _values(content, name, name.startswith(prefix))
    for _ in range(content.number(4)):
        alias, name = content.name(), content.name()
        if name not in variables:
            raise ValueError(f"{alias!r:.80} stands for {name!r:.80}, which is not there")
        variables[alias] = variables[name]
    if content.place != len(content.content):
        raise ValueError(f"{len(content.content) - content.place} bytes follow its end")
    return variables


def _values(content: _Bytes, name: str, wanted: bool) -> Tensor:
    shape = [content.number(4) for _ in range(content.number(1))]
    number, size = content.number(1), content.number(4)
    if number >= len(TYPES):
        raise ValueError(f"{name!r:.80} has type {number}; known are 0 to {len(TYPES) - 1}")
    kind = TYPES[number]
    if not all(shape) or size != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{name!r:.80} has shape {shape} of {kind}, but {size} bytes")
    values = content.take(size)
    if not wanted:
        return torch.empty(shape, dtype=kind, device="meta")
    return torch.from_numpy(np.array(values)).view(kind).view(shape)


def _dequantised(variables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Integers divided by the scale of their row or of all rows, which lies beside them."""
    scales = {name: variables[f"{name}_scale"] for name in variables if f"{name}_scale" in variables}
    for name, scale in scales.items():
        if scale.numel() not in (1, *variables[name].shape[:1]):
            raise ValueError(f"{name!r:.80} has {tuple(variables[name].shape)}, but {scale.numel()} scales")
    plain = {name: x for name, x in variables.items() if name.removesuffix("_scale") not in scales or name in scales}
    return {
        name: x.float() / scales[name].float().view(-1, *(1,) * (x.ndim - 1)) if name in scales else x
        for name, x in plain.items()
    }
