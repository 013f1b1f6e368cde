"""The folders of stages: their marks, removal, putting aside, and collisions."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.files import ASIDE
from distill.recipe.contents import file_hash

STARTED, DONE = ".started", ".done"
MARKS = frozenset({STARTED, DONE, f"{STARTED}.tmp", f"{DONE}.tmp"})
REPOSITORY = Path(__file__).resolve().parents[2]
OF_THE_REPOSITORY = ("distill", "local", "tools", "tests", "benchmarks", "egs")
OF_A_RECIPE = ("conf", "mini", "model", "results")


def read_mark(path: Path) -> dict[str, Any]:
    """The content of a stage's mark; FileNotFoundError without one, ValueError naming the file for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"there is no {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder, where a stage's mark is a file") from None
    except (ValueError, RecursionError):
        reason = "cut short or not a stage's" if path.stat().st_size else "empty"
        raise ValueError(f"{path} is {reason}") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(k), dict) for k in ("settings", "inputs")):
        raise ValueError(f"{path} does not name settings and inputs, as a stage's mark does")
    if path.name == DONE and not isinstance(content.get("hash"), str):
        raise ValueError(f"{path} does not name a hash, as a stage's mark does")
    return content


def is_blank(folder: Path) -> bool:
    """True for a folder with nothing but marks."""
    return folder.is_dir() and all(name in MARKS and (folder / name).is_file() for name in os.listdir(folder))


def check_own(folder: Path, mark: str, number: int) -> None:
    """Raise ValueError unless stage `number` made the folder, or there is nothing in it, or no such folder."""
    if not os.path.lexists(folder) or is_blank(folder):
        return
    try:
        content = read_mark(folder / mark)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"stage {number} writes {folder}, but something is there that no stage is known to have made ({error}):"
            " it is left as it is. Move it away, or give another --data-dir or --exp-dir"
        ) from None
    check_stage(folder, content, number)


def check_stage(folder: Path, mark: Mapping[str, Any], number: int) -> None:
    """Raise ValueError if the mark is of another stage."""
    if mark.get("stage", number) != number:
        raise ValueError(
            f"stage {number} writes {folder}, but stage {mark['stage']} made it; choose another name for what stage"
            f" {number} makes, or another folder"
        )


def files_in(folder: Path) -> list[str]:
    """Every file below a folder but its marks, relative to it, sorted."""
    paths = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    return sorted({path.relative_to(folder).as_posix() for path in paths} - MARKS)


def hash_of(mark: Mapping[str, Any], name: str = "") -> str:
    """The hash in a stage's mark of its folder, or of the file of this name in it."""
    known = {"": mark["hash"], **_table(mark, "contents"), **_table(mark, "kept")}
    return str(known.get(name, mark["hash"]))


def contents_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Hashes of the contents of files in a folder; none of those that cannot be read."""
    found = {}
    for name in names:
        with contextlib.suppress(OSError):
            found[name] = file_hash(folder / name)
    return found


def unchanged(before: Path, contents: Mapping[str, str]) -> dict[str, str]:
    """Hashes by which the files that a stage writes were known before, where they are the same, by name.

    contents: theirs now. The folder's own hash is under "", where all files are the same.
    """
    try:
        mark = read_mark(before / DONE)
    except (FileNotFoundError, ValueError):
        return {}
    listed = mark.get("files")
    names = listed if isinstance(listed, list) else []
    # earlier versions' marks name no contents; a linked file may have changed where it comes from
    alone = (name for name in names if (before / name).is_file() and (before / name).stat().st_nlink == 1)
    old = _table(mark, "contents") or contents_of(before, alone)
    same = {name: hash_of(mark, name) for name, digest in contents.items() if old.get(name) == digest}
    return same | ({"": hash_of(mark)} if same and len(same) == len(names) == len(contents) else {})


def _table(mark: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = mark.get(key)
    return found if isinstance(found, dict) else {}


def put_aside(folder: Path) -> Path:
    """Rename a folder to the next free NAME.aside-N beside it."""
    number = 1
    while os.path.lexists(aside := folder.with_name(f"{folder.name}{ASIDE}{number}")):
        number += 1
    folder.rename(aside)
    return aside


def remove(folder: Path) -> None:
    """Remove a stage's folder; marks go last, so that after a kill it is still recognised as a stage's."""
    if folder.is_symlink():
        folder.unlink()
        return
    for entry in sorted(folder.iterdir(), key=lambda path: path.name in MARKS):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    folder.rmdir()


def not_separate(option: str, folder: Path, others: Mapping[str, Path]) -> Iterator[str]:
    """An error for each of the others that is the same folder, by whatever name; `others`: option -> folder."""
    for name, other in others.items():
        if same(folder, other):
            yield f"{option} and {name} are the same folder, {folder.resolve()}; give two"


def same(one: Path, other: Path) -> bool:
    """True for two paths of one place."""
    if one.resolve() == other.resolve():
        return True
    return one.exists() and other.exists() and os.path.samefile(one, other)


def not_writable(option: str, folder: Path) -> Iterator[str]:
    """Errors for a file, the root, a folder above the repository, and one that the repository has itself."""
    for path in (folder.absolute(), *folder.absolute().parents):
        if path.is_symlink() and not path.exists():
            yield f"{option} {folder}: {path} is a link that leads nowhere; expected a folder"
        if path.exists() and not path.is_dir():
            yield f"{option} {folder}: {path} is a file; expected a folder, or a name that is free"
    for place in dict.fromkeys((folder.resolve(), Path(os.path.abspath(folder)))):
        if place in (place.parent, Path(os.path.expanduser("~"))) or REPOSITORY.is_relative_to(place):
            yield f"{option} {folder}: expected a folder of its own, got {place}; give one below it"
        elif place.is_relative_to(REPOSITORY) and _of_repository(place.relative_to(REPOSITORY).parts):
            yield f"{option} {folder}: {place} is the repository's; give a folder outside, or egs/*/NAME"


def _of_repository(parts: tuple[str, ...]) -> bool:
    if parts[0] == "egs" and len(parts) > 2:
        return parts[2] in OF_A_RECIPE
    return parts[0] in OF_THE_REPOSITORY or parts[0].startswith(".")


def below(folder: Path, other: Path) -> str | None:
    """The first name on the way from `other` down to `folder`; None if it does not lie below."""
    place, top = folder.resolve(), other.resolve()
    return place.relative_to(top).parts[0] if place != top and place.is_relative_to(top) else None
