"""Distances and pictures of clean and distorted representations."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.analysis.distorted import distances, embedded, mean_states
from distill.batch import Batch
from distill.data.loader import SpeechDataset, in_order
from distill.models import checkpoint
from tests.support.tiny_recipe import Tiny
from tools import distortions


def test_states_are_means_over_frames_and_over_parts(tiny: Tiny) -> None:
    from distill.corpora.cut_sets import load_cuts

    model = checkpoint.load_recogniser(tiny.exp / "teacher")[0]
    cuts = load_cuts(tiny.data / "cuts", ["test-clean"])
    reading = SpeechDataset(None, None, 0, False, False)
    found = mean_states({"a": model, "b": model}, in_order(cuts, reading, 10), 2)
    alone = {}
    with torch.no_grad():
        for cut in cuts:
            batch: Batch = reading[[cut]]
            output = model(batch.wave, batch.samples)
            alone[cut.id] = output.hidden[-1][0, : int(output.lengths[0])].mean(0).numpy()
    names = sorted(alone)
    expected = [np.mean([alone[name] for name in names[:3]], 0), np.mean([alone[name] for name in names[3:]], 0)]
    np.testing.assert_allclose(found["a"], expected, atol=1e-4)
    np.testing.assert_array_equal(found["a"], found["b"])
    with pytest.raises(ValueError, match="5 utterances are fewer than 6 parts"):
        mean_states({"a": model}, in_order(cuts, reading, 10), 6)


def test_distances_are_in_units_of_the_spread() -> None:
    clean = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    found = distances({"clean": 5 * clean, "moved": 5 * clean + [10, 0], "turned": -5 * clean}, "clean")
    assert found["clean"] == (0.0, 0.0)
    assert found["moved"] == pytest.approx((2.0, 2.0)) and found["turned"] == pytest.approx((0.0, 2.0))


def test_clusters_stay_clusters_in_the_picture() -> None:
    rng = np.random.default_rng(0)
    versions = {name: rng.standard_normal((20, 8)) + 50 * k for k, name in enumerate(("clean", "noise"))}
    one, other = embedded(versions).values()
    assert one.shape == (20, 2)
    within = max(np.linalg.norm(x - x.mean(0), axis=1).mean() for x in (one, other))
    assert np.linalg.norm(one.mean(0) - other.mean(0)) > 2 * within
    assert np.array_equal(embedded(versions)["clean"], one)


def test_the_tool_writes_picture_and_distances(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml = tiny.conf / "teacher.yaml"
    yaml.write_text(yaml.read_text() + "decoding: {conditions: {two: {}}}\n")
    folders = [str(tiny.exp / name) for name in ("teacher", "other")]
    options = [
        "--cuts",
        str(tiny.data / "cuts"),
        "--parts",
        "2",
        "--distortions",
        "gaussian",
        "--out",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr(sys, "argv", ["distortions", *folders, *options, "--conditions", str(yaml)])
    distortions.main()
    content = json.loads((tmp_path / "out/distortions.json").read_text())
    assert {model: set(found) for model, found in content["distances"].items()} == {
        name: {"clean", "gaussian", "two"} for name in ("teacher", "other")
    }
    assert all(found["clean"] == [0, 0] and found["gaussian"][1] > 0.01 for found in content["distances"].values())
    assert len((tmp_path / "out/distortions.tsv").read_text().splitlines()) == 7
    assert (tmp_path / "out/distortions.png").stat().st_size > 5000
    monkeypatch.setattr(sys, "argv", ["distortions", *folders, *options, "--distortions", "him"])
    with pytest.raises(ValueError, match="--distortions: steps: no distortion 'him'; did you mean 'hum'"):
        distortions.main()


def test_folders_of_one_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(tmp_path / seed / "exp/cdm0") for seed in ("seed-0", "seed-1")]
    monkeypatch.setattr(sys, "argv", ["distortions", *folders, "--cuts", str(tmp_path), "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        distortions.main()
    assert "cdm0 is the name of several folders" in capsys.readouterr().err
