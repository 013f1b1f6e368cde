"""Similarity of students' blocks to their teacher's in a folder of results, as `tools/similarity.py` writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from distill.report.table import Section, Table

FOLDER = "similarity"  # in that of the results; below it one of each student
MEASURES = ("SVCCA", "CKA")
NOTE = (
    "last: of both last blocks; best: of each student block with the teacher block that is most like it, a mean over"
    " blocks. 1: equal up to rotation and scale (CKA), or any linear map (SVCCA)."
)


def sections(folder: Path) -> Iterator[Section]:
    """A table and the pictures; none without files."""
    rows, pictures = [], []
    for path in sorted(folder.glob(f"{FOLDER}/*/similarity.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        teacher, student = content["experiments"]
        cells = []
        for measure in MEASURES:
            values = content[measure]  # a row of each teacher block
            cells += [f"{values[-1][-1]:.3f}", f"{fmean(map(max, zip(*values))):.3f}"]
        rows.append((student, teacher, *cells))
        picture = path.with_suffix(".png")
        if picture.is_file():
            pictures += ["", f"![{student} and {teacher}]({picture.relative_to(folder).as_posix()})"]
    if rows:
        head = ("student", "teacher", *(f"{measure} {kind}" for measure in MEASURES for kind in ("last", "best")))
        yield "Similarity of hidden states", [*Table(head, tuple(rows), fixed=2).markdown(), "", NOTE, *pictures]
