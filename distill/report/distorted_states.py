"""Distances of hidden states of distorted speech in a folder of results, as `tools/distortions.py` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from distill.config.distortions import CLEAN
from distill.report.table import Section, Table

FILE = "distortions/distortions.json"  # in the folder of the results
NOTE = (
    "Last hidden states, means over frames, of clean and distorted speech: distance between centroids, and in brackets"
    " a mean between the same utterances, in units of the spread of the clean ones. The picture is by t-SNE."
)


def sections(folder: Path) -> Iterator[Section]:
    """A table and its picture; none without the file."""
    path = folder / FILE
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    models = content["distances"]
    kinds = [kind for kind in next(iter(models.values())) if kind != CLEAN]
    rows = [(model, *(f"{of[kind][0]:.2f} ({of[kind][1]:.2f})" for kind in kinds)) for model, of in models.items()]
    lines = [*Table(("model", *kinds), tuple(rows), fixed=1).markdown(), "", NOTE]
    picture = path.with_suffix(".png")
    if picture.is_file():
        lines += ["", f"![t-SNE of {content['part']}]({picture.relative_to(folder).as_posix()})"]
    yield f"Clean and distorted states ({content['part']})", lines
