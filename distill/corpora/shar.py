"""Lhotse Shar: shards of cuts, with the audio of each shard in a tar beside it or in a bucket."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from distill.corpora.cut_files import read_cuts
from distill.corpora.listing import Listing, Unusable, at
from distill.corpora.objects import is_remote, tar_members
from distill.text import read_lines

log = logging.getLogger(__name__)

CUTS = re.compile(r"cuts(\..+)?\.jsonl(?:\.gz)?")
AUDIO = re.compile(r"recording(\..+)?\.tar")
ADDRESS = "recording.txt"
"""File with the address of the folder in a bucket where the tars lie."""


def shar_files(folder: Path) -> list[Path]:
    """The cuts, tars and the address of a folder of Shar; none where it is no such folder."""
    files = sorted(path for path in folder.glob("*") if path.is_file())
    audio = [path for path in files if AUDIO.fullmatch(path.name) or path.name == ADDRESS]
    cuts = [path for path in files if CUTS.fullmatch(path.name)]
    return [*cuts, *audio] if cuts and audio else []


def list_shar(folder: Path, *, needs_text: bool = True, allow_commands: bool = False) -> Listing:
    """The listing of a folder of Shar, one shard after the other: cuts, and headers of the tar; no audio is read.

    A recording is named after its cut. Raises ValueError for cuts that cannot be parsed, with file and line, and for
    an address that is none; what is wrong with one cut or tar goes to `left_out`. Other fields are not read.
    """
    folder = folder.resolve()
    base, listing = _base(folder), Listing()
    shards = {f"recording{match[1] or ''}.tar": path for path in shar_files(folder)
              if (match := CUTS.fullmatch(path.name))}  # fmt: skip
    for name, path in shards.items():
        _add_shard(listing, path, f"{base}/{name}", needs_text, allow_commands)
    strays = [path.name for path in folder.glob("recording*.tar") if path.name not in shards]
    listing.left_out += [(name, f"tar without cuts: no cuts of its number ({name})") for name in sorted(strays)]
    others = Counter(path.name.partition(".")[0] for path in folder.glob("*.tar") if not AUDIO.fullmatch(path.name))
    others += Counter(path.name.partition(".")[0] for path in folder.glob("*.jsonl*") if not CUTS.fullmatch(path.name))
    if others:
        listed = ", ".join(f"{field} ({count} files)" for field, count in sorted(others.items()))
        log.info("%s: fields of Shar that are not used: %s", folder, listed)
    return listing


def _base(folder: Path) -> str:
    """Where the tars lie: the folder, or the address that it names."""
    if not (folder / ADDRESS).is_file():
        return str(folder)
    lines = [line.strip().rstrip("/") for line in read_lines(folder / ADDRESS) if line.strip()]
    if len(lines) != 1 or not is_remote(f"{lines[0]}/x"):
        raise ValueError(f"{folder / ADDRESS}: expected one line, the address of the tars' folder, such as s3://mine/a;"
                         f" got {lines[:2]}")  # fmt: skip
    return lines[0]


def _add_shard(listing: Listing, cuts: Path, tar: str, needs_text: bool, allow_commands: bool) -> None:
    """Adds the cuts of a shard, and the members of its tar that no cut has."""
    members: Mapping[str, list[str]] = {}
    name, used = tar.rpartition("/")[2], set[str]()
    try:
        members, damage = tar_members(tar)
        reason = f"no such member: {name} has none of this name among {len(members)}"
        reason += f"; it is cut off, damaged or no tar ({damage})" if damage else ""
    except FileNotFoundError:
        reason = f"no such file: {tar}"
    except OSError as error:
        reason = f"no access: {tar} ({error.strerror})"
    except Unusable as error:
        reason = str(error)
    fill = partial(_filled, members, used, reason)
    read_cuts(cuts, listing, fill, needs_text=needs_text, allow_commands=allow_commands)
    listing.left_out += [(cut, f"audio without a cut: {name}") for cut in sorted(members.keys() - used)]


def _filled(
    members: Mapping[str, list[str]], used: set[str], reason: str, row: dict[str, Any], place: str
) -> dict[str, Any]:
    """The row of a cut with a member in the place of Shar's placeholder; Unusable, with `reason`, without one."""
    name = row.get("id")
    found = members.get(name, []) if isinstance(name, str) else []
    used.add(str(name))
    match row:
        case {"recording": {"sources": [{"type": "shar"} as placeholder]} as recording}:
            pass
        case _:
            return row
    if len(found) > 1:
        raise Unusable(f"duplicate recording: {len(found)} members have the name {name} ({place})")
    if not found:
        raise Unusable(at(reason, place))
    if not found[0]:
        raise Unusable(f"no recording: {name} is stored without audio ({place})")
    source = {**placeholder, "type": "url" if is_remote(found[0]) else "file", "source": found[0]}
    return {**row, "recording": {**recording, "id": name, "sources": [source]}}
