"""The section of similarities on a page of results."""

from __future__ import annotations

from pathlib import Path

from distill.report.similarity import NOTE, sections
from tests.support.results import write

VALUES = {"SVCCA": [[0.9, 0.2], [0.4, 0.6], [0.1, 0.5]], "CKA": [[1.0, 0.0], [0.0, 0.7], [0.3, 0.8]]}


def test_the_last_blocks_and_the_best_ones_are_shown(tmp_path: Path) -> None:
    assert not list(sections(tmp_path))
    folder = tmp_path / "similarity/dt"
    write(folder / "similarity.json", {"experiments": ["hubert", "dt"], **VALUES})
    (folder / "similarity.png").touch()
    ((title, lines),) = sections(tmp_path)
    assert title == "Similarity of hidden states" and NOTE in lines
    assert lines[2] == "| dt | hubert | 0.500 | 0.750 | 0.800 | 0.900 |"
    assert lines[-1] == "![dt and hubert](similarity/dt/similarity.png)"
