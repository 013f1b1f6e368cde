"""Read checkpoints of other libraries without executing their content."""

from __future__ import annotations

import contextlib
import json
import pickletools
import re
import zipfile
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INERT = ("fairseq", "omegaconf", "argparse", "typing", "numpy", "collections", "enum", "pathlib")
"""Packages whose classes may be named in a checkpoint: each becomes a `Stub`, none is imported."""
TYPES = {f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str", "tuple")}
"""Named as the types of settings, or as what a defaultdict begins with."""


class Stub:
    """Stands in for a class of another library: keeps what it is given, does nothing with it."""

    args: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *args: Any) -> Stub:
        stub = super().__new__(cls)
        stub.args = args
        return stub

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def plain(value: Any) -> Any:
    """Settings out of stubs (omegaconf nodes, argparse namespaces) as nested dictionaries and lists."""
    if isinstance(value, Stub):
        state = value.state
        if not isinstance(state, dict):
            return plain(value.args[0]) if len(value.args) == 1 else None
        for key in ("_content", "_val"):
            if key in state:
                return plain(state[key])
        return plain(state)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def read_pickle(path: Path, stubs: bool = False) -> Any:
    """A file of torch.save, by torch's own restricted reader; with `stubs`, other libraries' classes as `Stub`.

    Raises FileNotFoundError, and ValueError for a file that is broken or names anything that could be executed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        allowed = [_stand_in(name) for name in _globals(path)] if stubs else []
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for cut, foreign or unsafe files
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it names {named[1]}" if named else f"{type(error).__name__}: {str(error)[:80].splitlines()[:1]}"
        way_out = "" if named else f"; {_way_out(path)}"
        raise ValueError(
            f"{path}: cannot be read as a checkpoint, and is not read any further ({reason}){way_out}"
        ) from None


def _way_out(path: Path) -> str:
    """Advice for an unreadable file; git leaves pointers in the places of large files."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            return "it is only git's pointer to the file: fetch that with git lfs pull"
    return "is it the whole file, and of this kind? Download it again"


def _globals(path: Path) -> list[str]:
    """Names of classes of inert packages in the pickles of a file of torch.save, new (zip) or old (in sequence)."""
    with contextlib.ExitStack() as stack:
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            pickles = [archive.open(name) for name in archive.namelist() if name.endswith("data.pkl")]
        else:
            pickles = [stack.enter_context(path.open("rb"))] * 4  # magic number, protocol, system, content, in sequence
        names = {
            str(argument).replace(" ", ".").replace("__builtin__.", "builtins.")
            for code, argument, _ in chain.from_iterable(map(pickletools.genops, pickles))
            if code.name in ("GLOBAL", "INST")
        }
    return sorted(name for name in names if name in TYPES or name.split(".")[0] in INERT)


def _stand_in(name: str) -> Any:
    """A `Stub` under a name of theirs; a plain dictionary where a defaultdict would bring its factory."""
    if name == "collections.defaultdict":
        kind: Any = lambda *_: {}  # noqa: E731
    else:
        kind = type("Stub", (Stub,), {})
    kind.__module__, _, kind.__qualname__ = name.rpartition(".")
    kind.__name__ = kind.__qualname__
    return kind


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or of a file of torch.save, possibly inside 'model' or 'state_dict'."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = read_pickle(path)
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: expected named tensors (a state dict), got {type(content).__name__}")
    return dict(content)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError(f"reading {path} needs safetensors: pip install safetensors") from None
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {_way_out(path)}") from None


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Tensors of a Hugging Face folder: one file or several with an index, safetensors before bin."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_tensors(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _read_parts(folder / f"{name}.index.json")
    raise FileNotFoundError(f"{folder} has neither model.safetensors nor pytorch_model.bin (nor an index of parts)")


def _read_parts(index: Path) -> dict[str, Tensor]:
    """The tensors that an index places in files beside it."""
    places = (read_object(index) or {}).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index}: no weight_map, which names each tensor's file")
    parts = {}
    for part in sorted(set(map(str, places.values()))):
        if Path(part).name != part:
            raise ValueError(f"{index} names a file that is not beside it: {part}")
        if not (index.parent / part).is_file():
            raise FileNotFoundError(f"{index} names {part}, which is not there; copy all parts of the model")
        parts[part] = read_tensors(index.parent / part)
    lacking = [f"{name} in {part}" for name, part in places.items() if name not in parts[part]]
    if lacking:
        raise ValueError(f"{index} names tensors that are not in their files: {', '.join(lacking[:5])}")
    return {name: parts[part][name] for name, part in places.items()}


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no file; ValueError for a broken file or another content."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object {{…}}, got {str(content)[:40]}")
    return content
