"""The section of distances between clean and distorted states on a page of results."""

from __future__ import annotations

from pathlib import Path

from distill.report.distorted_states import NOTE, sections
from tests.support.results import write

OF_A_MODEL = {"clean": [0.0, 0.0], "noise": [0.75, 0.891], "room": [1.0, 2.0]}


def test_distances_of_every_model_are_shown(tmp_path: Path) -> None:
    assert not list(sections(tmp_path))
    found = {"hubert": OF_A_MODEL, "cdm2": {**OF_A_MODEL, "room": [0.5, 0.25]}}
    write(tmp_path / "distortions/distortions.json", {"part": "test-clean", "distances": found})
    (tmp_path / "distortions/distortions.png").touch()
    ((title, lines),) = sections(tmp_path)
    assert title == "Clean and distorted states (test-clean)" and NOTE in lines
    assert lines[0] == "| model | noise | room |"
    assert lines[2:4] == ["| hubert | 0.75 (0.89) | 1.00 (2.00) |", "| cdm2 | 0.75 (0.89) | 0.50 (0.25) |"]
    assert lines[-1] == "![t-SNE of test-clean](distortions/distortions.png)"
