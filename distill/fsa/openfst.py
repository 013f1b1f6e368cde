"""OpenFst's files: its binary form, read without Python objects per arc, and its text form."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distill.files import refusal, replacing
from distill.fsa.graph import Fsa

if TYPE_CHECKING:
    import kaldifst

MAGIC = struct.pack("<i", 2125659606)
ARC = np.dtype([("input", "<i4"), ("output", "<i4"), ("cost", "<f4"), ("target", "<i4")])


def save_fst(path: Path, fst: kaldifst.StdVectorFst) -> None:
    """Write OpenFst's binary form, whole or not at all; raises OSError where the disk refuses it."""
    with replacing(path) as temporary:
        if not fst.write(str(temporary)):  # OpenFst gives no reason
            raise OSError(refusal(path.parent), "OpenFst could not write")


def read_openfst(path: Path) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Read OpenFst's binary form (type vector, standard arcs, no symbol tables).

    Returns the start state, final costs (S,) float32 with inf where not final, and for the arcs in
    order of their source: source (A,), fields of `ARC` (A,). Raises ValueError for another kind of file.
    """
    data = path.read_bytes()
    try:
        place, flags, start, count = _header(data)
        if flags & 3:
            raise ValueError("it holds symbol tables")
        final, arcs_of = np.empty(count, dtype=np.float32), np.empty(count, dtype=np.int64)
        pieces = []
        for state in range(count):
            final[state], arcs_of[state] = struct.unpack_from("<fq", data, place)
            place += 12
            pieces.append(data[place : place + ARC.itemsize * arcs_of[state]])
            place += ARC.itemsize * int(arcs_of[state])
        if place > len(data):
            raise ValueError("it is cut short")
    except (struct.error, ValueError) as error:
        raise ValueError(
            f"{path}: cut short, or not an OpenFst vector graph ({error}); remove it and make it again"
            " (run.sh --stage 4 --stop-stage 4), or convert it with fstconvert --fst_type=vector"
        ) from None
    return start, final, np.repeat(np.arange(count), arcs_of), np.frombuffer(b"".join(pieces), dtype=ARC)


def _header(data: bytes) -> tuple[int, int, int, int]:
    """Offset of the first state, flags, start state, number of states."""
    place = 4
    kinds = []
    for _ in range(2):
        (length,) = struct.unpack_from("<i", data, place)
        kinds.append(data[place + 4 : place + 4 + length])
        place += 4 + length
    if data[:4] != MAGIC or kinds != [b"vector", b"standard"]:
        raise ValueError(f"expected a vector graph of standard arcs, got {kinds}")
    _, flags, _, start, states, _ = struct.unpack_from("<iiQqqq", data, place)
    return place + struct.calcsize("<iiQqqq"), flags, start, states


def to_openfst_text(fsa: Fsa) -> str:
    """AT&T text of an acceptor with costs (negated log-weights), the start state first.

    Labels stand twice on a line: `kaldifst.compile(text, acceptor=False)`, `k2.Fsa.from_openfst(text, acceptor=False)`.
    """
    order = np.argsort(fsa.src, kind="stable")
    lines = [f"{fsa.src[a]} {fsa.dst[a]} {fsa.label[a]} {fsa.label[a]} {float(-fsa.weight[a])!r}" for a in order]
    lines += [f"{state} {float(-fsa.final[state])!r}" for state in np.flatnonzero(np.isfinite(fsa.final))]
    if lines and not lines[0].startswith("0 "):
        raise ValueError("the start state has no arcs: OpenFst's text form would start elsewhere")
    return "\n".join(lines) + "\n"
