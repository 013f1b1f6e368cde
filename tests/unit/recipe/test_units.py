"""Units of frames as a stage: the same labels by whoever makes them, once for equal settings, and in training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from distill.config.experiment import Experiment
from distill.data.audio import read_audio
from distill.data.units import CONVENTIONS, INVENTORY, Inventory, UnitShard, features
from distill.files import own_name
from distill.models import checkpoint
from distill.recipe import units
from distill.recipe.labelling import blocks
from tests.support.tiny_recipe import Tiny, succeeded
from tests.unit.recipe.test_jobs import kill_when
from tests.unit.recipe.test_ranks import contents

MARKS = ("skipped.tsv", "summary.json", ".started")
HUBERT = {
    "stage": 5,
    "pretrained": "random",
    "model": {
        "front_end": {"layers": [[16, 40, 20], [16, 16, 16]], "norm": "frame", "waveform": "none"},
        "encoder": {"dim": 16, "ffn_dim": 32, "layers": 2, "heads": 2, "position_kernel": 4, "position_groups": 2},
        "mask": {"time_probability": 0.5, "time_length": 2},
    },
    "data": {"train": ["unlabelled"], "max_duration": 2.0, "workers": 0},
    "objective": {"hubert": {"final_dim": 8}},
    "optim": {"updates": 2},
    "units": {"of": "mfcc", "clusters": 5},
}


@pytest.fixture
def hubert(tiny: Tiny) -> Tiny:
    """The recipe with experiments: hubert1 on units of MFCC, again on the same ones, hubert2 on those of hubert1."""
    written = {
        "hubert1": HUBERT,
        "again": {**HUBERT, "seed": 7},
        "hubert2": {**HUBERT, "units": {"of": "hubert1", "layer": 1, "clusters": 4}},
    }
    for name, values in written.items():
        (tiny.conf / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return tiny


def folder_of(tiny: Tiny, name: str) -> Path:
    experiment = Experiment.load(tiny.conf / f"{name}.yaml")
    assert experiment.units is not None
    return tiny.data / "units" / experiment.units_folder


def train(tiny: Tiny, names: str, *options: str) -> str:
    return tiny.run("train.py", "--stage", "5", "--experiment", names, *options)


def labels(tiny: Tiny) -> dict[str, bytes]:
    """What the units' stage left, and nothing in the next call's way."""
    found = contents(tiny.data / "units")
    for folder in (tiny.data / "units", *tiny.exp.glob("hubert*")):
        shutil.rmtree(folder)
    return found


def test_units_are_the_same_by_any_number_of_processes(hubert: Tiny) -> None:
    logged = train(hubert, "hubert1", "--nj", "1")
    one = labels(hubert)
    train(hubert, "hubert1", "--nj", "2")
    assert one == labels(hubert)
    names = {name.partition("/")[2] for name in one}
    shards = {f"unlabelled/0000{n}.npz" for n in range(4)} | {"dev/00000.npz"}
    assert names == shards | {"unlabelled/shards.json", "dev/shards.json"} | {INVENTORY, *MARKS}
    assert logged.count("units of ") == 6  # found once, five shards


def test_units_are_the_same_by_jobs_one_of_them_killed(hubert: Tiny) -> None:
    train(hubert, "hubert1", "--nj", "1")
    one, folder = labels(hubert), folder_of(hubert, "hubert1")
    options = ("--stage", "5", "--experiment", "hubert1", "--nj", "1", "--job")
    killed = hubert.start("train.py", *options, "1/2")
    kill_when(killed, folder / INVENTORY)
    own_name(folder / "unlabelled/00001.npz").parent.mkdir(exist_ok=True)
    own_name(folder / "unlabelled/00001.npz").write_bytes(b"half")
    for job in [hubert.start("train.py", *options, f"{n}/2") for n in (1, 2)]:
        succeeded(job)
    assert not (folder / ".done").exists() and not (hubert.exp / "hubert1").exists()
    assert len(list(folder.glob("*/*.npz"))) == 5
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    train(hubert, "hubert1", "--nj", "1")
    assert kept == {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    assert labels(hubert) == one


def test_labels_are_of_the_nearest_centroid_and_shared(hubert: Tiny) -> None:
    cut = blocks(hubert.data / "cuts", "unlabelled").read(2)[1]
    train(hubert, "hubert1,again,hubert2", "--nj", "1")
    assert len(list((hubert.data / "units").iterdir())) == 2, "again has the units of hubert1"
    assert "stage 5: up to date" in train(hubert, "again", "--nj", "1")
    wave = torch.from_numpy(read_audio(cut))
    model = checkpoint.load_recogniser(hubert.exp / "hubert1")[0]
    with torch.no_grad():
        hidden = model(wave[None], torch.tensor([len(wave)])).hidden[1][0]
    for name, frames in (("hubert1", features("mfcc", wave)), ("hubert2", hidden)):
        folder = folder_of(hubert, name)
        inventory = Inventory.load(folder / INVENTORY)
        found = UnitShard(folder / "unlabelled/00002.npz")[cut.id]
        distances = torch.cdist(frames.double(), torch.from_numpy(inventory.centroids).double())
        np.testing.assert_array_equal(found, distances.argmin(1))
        summary = json.loads((folder / "summary.json").read_text())["unlabelled"]
        every = np.concatenate(
            [row for n in range(4) for row in UnitShard(folder / f"unlabelled/0000{n}.npz").values()]
        )
        assert summary["counts"] == np.bincount(every, minlength=len(inventory.centroids)).tolist()
        shares = np.array(summary["counts"]) / len(every)
        assert summary["perplexity"] == pytest.approx(np.prod(shares[shares > 0] ** -shares[shares > 0]), abs=0.01)
    assert inventory.origin.weights == checkpoint.digest(model.settings.changed(), model.state_dict().items())
    assert (inventory.origin.layer, inventory.origin.convention) == (1, CONVENTIONS[""])


def test_masks_longer_than_most_utterances_are_warned_of(hubert: Tiny) -> None:
    logged = train(hubert, "hubert1", "--nj", "1", "--set", "model.mask.time_length=1000")
    assert "model.mask.time_length 1000 (20 s) leaves one frame of" in logged
    assert "time_length" not in train(hubert, "again", "--nj", "1")


def test_codewords_alone_need_no_labels_and_teachers_may_be_of_the_same_call(hubert: Tiny) -> None:
    teacher = {**HUBERT, "objective": {"bestrq": {}}, "units": None}
    student = {
        **HUBERT, "units": {"of": "first", "layer": 1, "clusters": 4}, "teacher": {"experiment": "first"},
        "init": "first", "objective": {"discriminative": {"final_dim": 8}},
    }  # fmt: skip
    for name, values in {"first": teacher, "second": student, "third": {**student, "units": None}}.items():
        (hubert.conf / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    call = hubert.start("train.py", "--stage", "5", "--experiment", "first,second,third", "--nj", "1")
    logged, _ = call.communicate(timeout=300)
    assert "third: its teacher first has no codewords, so that 500 are found by k-means of its block 1" in logged
    assert call.returncode == 1 and "500 clusters cannot be found in" in logged, "too little audio for so many"
    folder = folder_of(hubert, "second")
    assert folder.name.endswith("-codewords") and (folder / INVENTORY).is_file() and not list(folder.glob("*/"))
    assert "stage 5: up to date" in train(hubert, "first,second", "--nj", "1")


def test_other_weights_of_the_source_make_other_units(hubert: Tiny) -> None:
    train(hubert, "hubert1,hubert2", "--nj", "1")
    folder = folder_of(hubert, "hubert2")
    foreign = (folder / INVENTORY).read_bytes()
    train(hubert, "hubert1,hubert2", "--nj", "1", "--set", "seed=3")
    assert (folder / INVENTORY).read_bytes() != foreign and folder.with_name(f"{folder.name}.aside-1").is_dir()
    (folder / INVENTORY).write_bytes(foreign)
    for name in (".done", "dev/00000.npz"):
        (folder / name).unlink()
    call = hubert.start("train.py", "--stage", "5", "--experiment", "hubert2", "--nj", "1", "--set", "seed=3")
    logged, _ = call.communicate(timeout=300)
    assert call.returncode == 1 and "Traceback" not in logged
    assert f"{INVENTORY}: units of another origin (weights: expected" in logged and "away, and give the same" in logged


def test_audio_without_labels_is_listed(hubert: Tiny, tmp_path: Path) -> None:
    broken = blocks(hubert.data / "cuts", "unlabelled").read(1)[0]
    path = Path(broken.recording.sources[0].source)
    kept = path.read_bytes()
    try:
        path.write_bytes(kept[:100])
        train(hubert, "hubert1", "--nj", "1")
    finally:
        path.write_bytes(kept)
    folder = folder_of(hubert, "hubert1")
    (line,) = (folder / "skipped.tsv").read_text().splitlines()
    assert line.startswith(f"{broken.id}\t") and path.name in line
    summary = json.loads((folder / "summary.json").read_text())["unlabelled"]
    assert (summary["utterances"], summary["without_labels"]) == (13, 1)
    assert UnitShard(folder / "unlabelled/00001.npz").reasons.keys() == {broken.id}


def test_more_clusters_than_frames_are_refused(hubert: Tiny) -> None:
    options = ("--set", "units.clusters=500")
    call = hubert.start("train.py", "--stage", "5", "--experiment", "hubert1", "--nj", "1", *options)
    logged, _ = call.communicate(timeout=300)
    assert call.returncode == 1 and "Traceback" not in logged
    assert "500 clusters cannot be found in 2" in logged and "different frames; set fewer units.clusters" in logged


def test_progress_of_finding_units_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 30.0, 70.0, 71.0, 100.0])
    monkeypatch.setattr("distill.recipe.units.time.monotonic", lambda: next(clock))
    caplog.set_level("INFO")
    assert [*units._with_progress(iter([["a", "b"], ["c", "d"], ["e"]]), 5)] == [["a", "b"], ["c", "d"], ["e"]]
    assert [record.message for record in caplog.records] == ["units: 4 of 5 utterances"]
