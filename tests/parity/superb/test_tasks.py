"""s3prl's recipes with a model of ours as upstream, for a few steps on corpora of tones in the published layouts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from ctypes.util import find_library
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from s3prl import hub
from s3prl.dataio.encoder.g2p import DEFAULT_LEXICON_URL
from s3prl.nn import S3PRLUpstream
from s3prl.util import download

from distill.config.distortions import Distort
from distill.data.distortions import Distorter
from distill.models import checkpoint
from distill.report.results import SuperbResult
from distill.report.superb import METRICS
from distill.superb.run import UPSTREAM, Probe, measure
from distill.superb.tasks import TASKS
from distill.superb.upstream import load_upstream
from tests.support import superb

ROOT = Path(__file__).resolve().parents[3]
SAME = Distort.parse({"steps": [["clean"]]}, "same")
SHORT = ("num_workers=0", "train.total_steps=4", "train.save_step=2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return superb.experiment(tmp_path / "tiny")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What s3prl downloads for PR lies in its folder of downloads."""
    monkeypatch.setattr(download, "_download_dir", tmp_path / "download")
    lexicon = "".join(f"{word} {phones}\n" for word, phones in superb.PHONES.items())
    for path in download.urls_to_filepaths(*DEFAULT_LEXICON_URL, download=False):
        Path(path).write_text(lexicon)
    return tmp_path


def test_s3prl_has_the_models_hidden_states(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, UPSTREAM, load_upstream, raising=False)
    upstream = S3PRLUpstream(UPSTREAM, path_or_url=str(folder))
    upstream.eval()
    model = checkpoint.load_recogniser(folder)[0]
    waves, lengths = torch.randn(2, 8000), torch.tensor([8000, 3300])
    states, counts = upstream(waves, lengths)
    expected = model(waves * (torch.arange(8000) < lengths[:, None]), lengths)
    assert upstream.downsample_rates == [model.front_end.hop] * 3 and upstream.hidden_sizes == [16] * 3
    for ours, count, theirs in zip(states, counts, expected.hidden):
        for row, frames in enumerate(expected.lengths.tolist()):
            assert count[row] - frames in (0, 1)  # s3prl rounds up
            assert torch.allclose(ours[row, :frames], theirs[row, :frames], atol=1e-5)


def test_keywords_by_the_tool_with_both_scores(tmp_path: Path, folder: Path) -> None:
    data = superb.speech_commands(tmp_path / "data")
    command = [sys.executable, ROOT / "tools/superb.py", "KS", "--experiment", folder, "--data", data]
    without_sox = f"build_dataset={json.dumps({part: {'sox_effects': None} for part in ('train', 'valid', 'test')})}"
    options = [
        option
        for value in (*SHORT, without_sox, "build_batch_sampler.train.batch_size=8")
        for option in ("--set", value)
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = SuperbResult.read(folder / "superb/KS.json")
    assert set(result.figures) == {"accuracy"} and 0 <= result.figures["accuracy"] <= 100 and result.epoch == 1
    assert re.search(r"^tiny +\d+\.\d\d +\d+\.\d +-?\d+ +1$", done.stdout, re.M), done.stdout
    assert (folder / "superb/KS/0/train/step_4").is_dir()
    again = subprocess.run([*command, *options], capture_output=True, text=True)
    assert again.returncode == 0 and "KS of" in again.stderr and "is finished" in again.stderr


def test_conditions_are_evaluated_without_another_training(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, task = superb.fluent_commands(tmp_path / "data"), TASKS["IC"]
    noise = Distort.parse({"snr": [-40, -40], "steps": [["gaussian"]]}, "noise")
    conditions = {"same": Distorter(SAME, tmp_path), "noise": Distorter(noise, tmp_path)}
    first = measure(task, folder, data, Probe(SHORT, conditions={"same": conditions["same"]}))
    assert first.conditions["same"].figures == first.figures
    train = folder / "superb/IC/0/train/step_4"
    written = train.stat().st_mtime_ns
    second = measure(task, folder, data, Probe(SHORT, conditions=conditions))
    assert second.conditions.keys() == {"same", "noise"} and second.figures == first.figures
    assert train.stat().st_mtime_ns == written and second.conditions["same"] == first.conditions["same"]
    caplog.set_level("INFO")
    assert measure(task, folder, data, Probe(SHORT, conditions=conditions)) == second and "is finished" in caplog.text
    assert SuperbResult.read(folder / "superb/IC.json") == second


def test_the_last_states_alone_are_another_measurement(tmp_path: Path, folder: Path) -> None:
    data, task = superb.fluent_commands(tmp_path / "data"), TASKS["IC"]
    found = measure(task, folder, data, Probe(SHORT, last_state=True))
    weights = torch.load(folder / "superb/IC/0/train/valid_best/model/state_dict.pt")  # of s3prl's model
    assert found.last_state and not any("featurizer.weights" in name for name in weights)
    assert not measure(task, folder, data, Probe(SHORT)).last_state and (folder / "superb/IC.aside-1").is_dir()


def test_phonemes_continue_from_s3prls_checkpoint(
    offline: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data, task = superb.librispeech(offline / "data"), TASKS["PR"]
    options = [*SHORT, "prepare_data.n_jobs=1", "build_batch_sampler.train.batch_size=4", "train.gradient_accumulate=1"]
    with monkeypatch.context() as broken:
        broken.setattr("s3prl.problem.SuperbPR.evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measure(task, folder, data, Probe(options))
    train = folder / "superb/PR/0/train"
    assert [path.name for path in train.glob("step_*")] == ["step_2"]
    caplog.set_level("INFO")
    result = measure(task, folder, data, Probe(options))
    assert f"Loading checkpoints from {train}/step_2" in caplog.text and set(result.figures) == {"per"}


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.skipif(find_library("sox") is None, reason="s3prl reads the queries with libsox")
def test_queries_take_the_best_state_of_the_development_set(tmp_path: Path, folder: Path) -> None:
    options = Probe(["num_workers=0", "max_workers=1"])
    result = measure(TASKS["QbE"], folder, superb.quesst(tmp_path / "data"), options)
    found = {path.parent.name: path.read_text() for path in (folder / "superb/QbE/0").glob("*/score.out")}
    best = max(range(3), key=lambda state: found[f"dev-{state}"])
    assert set(found) == {"dev-0", "dev-1", "dev-2", f"test-{best}"}
    assert f"maxTWV: {result.figures['mtwv'] / 100:.5f}"[:12] in found[f"test-{best}"]


def test_what_s3prl_raises_is_told_in_one_line(tmp_path: Path, folder: Path) -> None:
    data = superb.fluent_commands(tmp_path / "data")
    (data / "data/valid_data.csv").write_text("path\n")
    with pytest.raises(ValueError, match=r"IC: s3prl's SuperbIC ends with \w+: "):
        measure(TASKS["IC"], folder, data, Probe(SHORT))


SMALL = {"hidden_size": [8], "dropout": [0.0], "layer_norm": [False], "proj": [False], "sample_rate": [1]}


@pytest.mark.parametrize("name", ["IC", "SID", "ASR", "SF", "ER"])
def test_further_layouts(name: str, offline: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, options = TASKS[name], [*SHORT, "train.total_steps=1", "train.save_step=1"]
    if name == "SID":
        data = superb.voxceleb(offline / "data", offline / "splits")
        corpus = "s3prl.dataio.corpus.voxceleb1sid.VoxCeleb1SID"
        monkeypatch.setattr(f"{corpus}.__init__.__defaults__", (1, offline / "splits"))
    elif name == "ER":
        data = superb.iemocap(offline / "data", offline / "splits")
        options.append(f"cache_dir={offline / 'splits'}")
        task = replace(task, runs=task.runs[:2])  # of five folds
    else:
        writers = {"IC": superb.fluent_commands, "ASR": superb.librispeech, "SF": superb.audio_snips}
        data = writers[name](offline / "data")
    if name in ("SID", "ASR"):
        options += ["prepare_data.n_jobs=1"]
    if name in ("ASR", "SF"):
        options += [f"build_downstream.model_conf.{key}={json.dumps(value)}" for key, value in SMALL.items()]
    result = measure(task, folder, data, Probe(options, conditions={"same": Distorter(SAME, offline)}))
    assert result.conditions["same"].figures == result.figures
    assert all(value >= 0 for value in result.figures.values()) and len(result.runs) == len(task.runs)
    assert result.figures.keys() == {metric.figure for metric in METRICS if metric.task == name}
