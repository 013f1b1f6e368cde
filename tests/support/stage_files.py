"""The files of a recipe up to one of its stages, and whether two runs left the same."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Differs(NamedTuple):
    """Files whose path matches `files` may differ in the keys that match `keys`; where this is empty, in all."""

    files: str
    keys: str
    reason: str


MAY_DIFFER = (
    Differs(r"tensorboard/", "", "each call begins a file named after time, host and process"),
    Differs(r"\.(done|started)$", "seconds|seen|contents", "time, sizes and places; hashes of files that differ here"),
    Differs(r"\.pt$", "wall_seconds", "how long it took"),
    Differs(r"result\.json$", "wall_s|command", "how long it took; the stages that the command line names"),
    Differs(
        r"timing\.json$",
        "gemm_gflops|rtf.*|(finalisation|model|peak)_(ms|mb|mean_ms|p90_ms)|command",
        "speed and memory as measured; the stages that the command line names",
    ),
)


UNMARKED = {"corpus": 0, "targets": 8}  # folders below data-dir without a mark: the stages that write them


def stage_of(path: Path, root: Path) -> int:
    """The stage that wrote a file or folder of a recipe itself, -1 for a folder that only contains others'."""
    if path.parent == root / "data" and path.name in UNMARKED:
        return UNMARKED[path.name]
    if path.parent == root / "exp" and path.is_file():
        return 13
    mark = path / ".done"
    return int(json.loads(mark.read_text())["stage"]) if mark.is_file() else -1


@contextlib.contextmanager
def in_its_place(root: Path) -> Iterator[Path]:
    """Free a recipe's folder for another run of its stages, so that the same paths stand in the files of both.

    The folder lies at the path that is given meanwhile; what was made in its place is removed at the end.
    """
    whole = root.rename(root.with_name(f"{root.name}.whole"))
    try:
        yield whole
    finally:
        if root.exists():
            shutil.rmtree(root)
        whole.rename(root)


def copy_before(stage: int, root: Path, target: Path) -> None:
    """Copy what the stages before `stage` have written; nothing is there before the first one."""

    def later(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if stage_of(Path(folder) / name, root) >= stage]

    if stage:
        shutil.copytree(root, target, ignore=later)


def files_up_to(stage: int, root: Path) -> set[str]:
    """Files of the stages up to this one; those in tensorboard/ count as one."""

    def walk(folder: Path) -> Iterator[Path]:
        for path in folder.iterdir():
            if stage_of(path, root) <= stage:
                yield from walk(path) if path.is_dir() else [path]

    names = (path.relative_to(root).as_posix() for path in walk(root))
    return {re.sub(r"tensorboard/.*", "tensorboard/", name) for name in names}


def differences(stage: int, whole: Path, other: Path) -> list[str]:
    """What is not as in the folder `whole`, whose stages may go on beyond `stage`; a line for each file."""
    expected, found = files_up_to(stage, whole), files_up_to(99, other)
    wrong = [f"{name}: missing" for name in sorted(expected - found)]
    wrong += [f"{name}: left over" for name in sorted(found - expected)]
    for name in sorted(expected & found):
        keys = [each.keys for each in MAY_DIFFER if re.search(each.files, name)]
        if "" not in keys and (where := _unlike(whole / name, other / name, "|".join(keys))):
            wrong.append(f"{name}: differs{where}")
    return wrong


def _unlike(left: Path, right: Path, ignored: str) -> str:
    """Where two files differ, empty if they do not."""
    if left.read_bytes() == right.read_bytes():
        return ""
    if left.suffix not in (".pt", ".json", ".gz") and left.name not in (".done", ".started"):
        return " in its bytes"
    return _unlike_values(_read(left), _read(right), ignored)


def _read(path: Path) -> Any:
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else json.loads(path.read_text())


def _unlike_values(left: Any, right: Any, ignored: str) -> str:
    if type(left) is not type(right):
        return " in its type"
    if isinstance(left, dict):
        keys = {key for key in left.keys() | right.keys() if not (ignored and re.fullmatch(ignored, str(key)))}
        missing = sorted(str(key) for key in keys if key not in left or key not in right)
        inner = ((key, _unlike_values(left[key], right[key], ignored)) for key in keys if not missing)
        return f" in the keys {missing}" if missing else next((f" at {key}{rest}" for key, rest in inner if rest), "")
    if isinstance(left, (list, tuple)) and len(left) == len(right):
        inner = ((n, _unlike_values(*pair, ignored)) for n, pair in enumerate(zip(left, right)))
        return next((f" at {n}{rest}" for n, rest in inner if rest), "")
    if isinstance(left, torch.Tensor):
        return "" if _bits(left) == _bits(right) else " in a tensor"
    return "" if repr(left) == repr(right) else f": {left!r:.80} and {right!r:.80}"  # NaN is as NaN


def _bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.contiguous().numpy().tobytes()
