"""Every task of SUPERB has a recipe and reference points; wrong names and folders are named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from distill.config.distortions import Distort
from distill.config.experiment_set import SUPERB_TASKS
from distill.config.files import overridden
from distill.data.distortions import Distorter
from distill.models.recogniser import Recogniser
from distill.report.results import Condition
from distill.report.superb import METRICS
from distill.superb.qbe import QueryByExample
from distill.superb.run import (
    Probe,
    check_kinds,
    claim,
    differs,
    distorted,
    fitted,
    identity,
    measure,
    noises_of,
    recipe_of,
)
from distill.superb.tasks import TASKS, find_task
from distill.superb.upstream import Upstream
from tests.support import superb
from tests.support.models import MODELS, build
from tools import superb as superb_tool

ROOT = Path(__file__).resolve().parents[3]
WRITERS = {
    "KS": superb.speech_commands, "IC": superb.fluent_commands, "PR": superb.librispeech, "ASR": superb.librispeech,
    "QbE": superb.quesst, "SID": lambda root: superb.voxceleb(root, root),
    "SF": superb.audio_snips, "ER": lambda root: superb.iemocap(root, root),
}  # fmt: skip


def test_every_task_has_a_recipe() -> None:
    assert set(TASKS) == {metric.task for metric in METRICS} == set(SUPERB_TASKS) and len(TASKS) == 10
    assert find_task("qbe").name == "QbE"


@pytest.mark.parametrize(("name", "hint"), [("KWS", "did you mean 'KS'"), ("vowels", "there are: PR, ASR")])
def test_an_unknown_task_is_named_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is not a task of SUPERB.*{hint}"):
        find_task(name)


@pytest.mark.parametrize("name", TASKS)
def test_a_folder_of_another_layout_is_named(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    with pytest.raises(FileNotFoundError, match=f"none is not there; {name} expects {task.corpus} with "):
        task.data(tmp_path / "none", {})
    with pytest.raises(FileNotFoundError, match=rf"has no .*; {name} expects"):
        task.data(tmp_path, {})


@pytest.mark.parametrize("name", WRITERS)
def test_the_published_layout_is_found(name: str, tmp_path: Path) -> None:
    root = WRITERS[name](tmp_path)
    folders = TASKS[name].data(root, {"run": 1})
    assert folders.pop("run") == 1
    assert folders and all(Path(folder).is_dir() for folder in folders.values())


def test_a_short_training_is_validated_and_saved_at_its_end() -> None:
    train = {"total_steps": 10, "eval_step": 5000, "save_step": 1000, "valid_metric": "per"}
    assert fitted({"train": train, "a": 1}) == {"train": train | {"eval_step": 10, "save_step": 10}, "a": 1}
    verification = train | {"eval_step": 1e20, "valid_metric": None}
    assert fitted({"train": verification})["train"] == verification | {"save_step": 10}
    longer = train | {"total_steps": 20000}
    assert fitted({"train": longer})["train"] == longer
    with pytest.raises(ValueError, match=r"total_steps 1500 is no multiple of train\.save_step 1000: the last"):
        fitted({"train": train | {"total_steps": 1500}})


ASKED = {"weights": "a", "overrides": ["a=1", "b=2"], "data": "d"}


def test_a_folder_of_other_weights_is_put_aside_with_its_figures(tmp_path: Path) -> None:
    place, figures = tmp_path / "KS", tmp_path / "KS.json"
    claim(figures, place, ASKED)
    for name in ("step_1", "step_2"):
        (place / "0/train" / name).mkdir(parents=True)
    (place / "0/train/step_1/config.yaml").touch()
    figures.touch()
    claim(figures, place, ASKED)
    assert [path.name for path in place.glob("0/train/*")] == ["step_1"]  # step_2 was cut short
    (place / "asked.json").write_text(json.dumps({**ASKED, "overrides": ["b=2", "a=1"]}))
    claim(figures, place, ASKED)
    assert (place / "0").exists() and figures.is_file(), "the order of settings is none of theirs"
    claim(figures, place, {**ASKED, "weights": "b"})
    assert not (place / "0").exists() and not figures.exists()
    assert (tmp_path / "KS.aside-1/0").is_dir() and (tmp_path / "KS.aside-1/KS.json").is_file()


def test_settings_count_by_their_names() -> None:
    one = identity("w", ["train.total_steps=2", "a=1", "a=2"], "d", False)
    assert one == identity("w", ["a=2", "train.total_steps=2"], "d", False) and one["overrides"][0] == "a=2"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.total_steps=many", r"--set train\.total_steps: a number, as 400 is expected \(got 'many'\)"),
        ("train=5", r"--set train: settings, as KEY=VALUE below it is expected \(got 5\)"),
        ("trian.total_steps=5", r"--set trian: s3prl's recipe has no such part; did you mean 'train'"),
    ],
)
def test_settings_of_another_kind_are_refused(override: str, message: str) -> None:
    defaults = {"train": {"total_steps": 400, "valid_metric": None}, "device": "cpu"}
    with pytest.raises(ValueError, match=message):
        check_kinds(overridden(defaults, [override]), defaults)
    check_kinds(overridden(defaults, ["train.valid_metric=x", "train.further=1"]), defaults)


class Recipe:
    """What s3prl's recipes have of this."""

    def build_collate_fn(self, settings: dict[str, Any], mode: str) -> Callable[[list[dict[str, Any]]], list]:
        return lambda samples: [sample["x"] for sample in samples]


@pytest.mark.parametrize("shape", [(400,), (400, 1)])
def test_test_recordings_alone_are_distorted_each_in_its_own_way(shape: tuple[int, ...]) -> None:
    recipe, condition = Recipe(), Distorter(Distort.parse({"steps": [["gaussian"]]}, "test"), Path())
    samples = [{"x": torch.randn(shape), "x_len": 400, "unique_name": name} for name in ("a", "b")]
    plain = [sample["x"] for sample in samples]
    with distorted(recipe, condition):
        first, again = (recipe.build_collate_fn({}, "test")(samples) for _ in range(2))
        reversed_ = recipe.build_collate_fn({}, "test")(samples[::-1])
        assert all(map(torch.equal, recipe.build_collate_fn({}, "valid")(samples), plain))
    assert all(map(torch.equal, first, again)) and all(map(torch.equal, first, reversed_[::-1]))
    noise = [ours - theirs for ours, theirs in zip(first, plain)]
    for wave, added in zip(plain, noise):
        assert added.shape == shape and 10 <= 10 * torch.log10(wave.square().mean() / added.square().mean()) <= 20
    assert not torch.equal(*noise)
    assert all(map(torch.equal, recipe.build_collate_fn({}, "test")(samples), plain))


def test_a_condition_of_other_recordings_is_another(tmp_path: Path) -> None:
    settings = Distort.parse({"steps": [["fsd"]], "noises": {"fsd": "noise/fsd"}}, "test")
    clips = tmp_path / "noise/fsd"
    clips.mkdir(parents=True)
    soundfile.write(clips / "a.wav", np.ones(100, np.float32), 16000)
    first = Distorter(settings, tmp_path)
    measured = Condition(settings=settings.resolved(), noises=noises_of(first), figures={})
    assert not differs(measured, first) and not differs(measured.model_copy(update={"noises": {}}), first)
    soundfile.write(clips / "b.wav", np.ones(100, np.float32), 16000)
    assert differs(measured, Distorter(settings, tmp_path))
    assert differs(measured, Distorter(settings.model_copy(update={"snr": (0, 5)}), tmp_path))


@pytest.mark.parametrize("name", ["QbE", "ASV", "SD"])
def test_tasks_without_conditions_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} is not measured under conditions, PR, ASR, KS, SID, IC, SF, ER are"):
        measure(TASKS[name], tmp_path, tmp_path, Probe(conditions={"two": Distorter(Distort(), tmp_path)}))


@pytest.mark.parametrize(("last_state", "states"), [(False, [0, 1, 2]), (True, [0])])
def test_queries_are_searched_with_the_states_and_epoch_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_state: bool, states: list[int]
) -> None:
    """Of the development set all states, of the test set the best one."""
    model, epochs, searched = build(*MODELS["waveform"]), [], []

    def load(folder: Path, epoch: str) -> tuple[Recogniser]:
        epochs.append(epoch)
        return (model,)

    def searching(upstream: Upstream, state: int, split: str, *_: object) -> float:
        searched.append((split, state))
        return 0.1 * state

    monkeypatch.setattr("distill.superb.upstream.checkpoint.load_recogniser", load)
    monkeypatch.setattr("distill.superb.qbe.mtwv", searching)
    upstream = {"path_or_url": "exp", "extra_conf": {"last_state": last_state, "epoch": "best"}}
    QueryByExample().run(str(tmp_path), {}, upstream, "cpu", 0)
    assert epochs == ["best"]
    assert searched == [*(("dev", state) for state in states), ("test", states[-1])]
    assert yaml.safe_load((tmp_path / "result.yaml").read_text())["state"] == states[-1]


def test_without_s3prl_its_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3prl", None)
    with pytest.raises(ValueError, match=r"needs s3prl, in an environment of its own: \./tools/superb\.sh"):
        recipe_of(TASKS["KS"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["KWS"], "did you mean 'KS'?"),
        (["KS"], "KS needs --data, a folder with Speech Commands"),
        (["KS", "--data", "none"], "none is not there; KS expects"),
        (["--data", "none"], "--data: of a task; name one, such as superb.sh KS"),
        (["KS", "--data", "ks", "--noises", "noise"], "--noises noise: noises are of --conditions; give those too"),
        ([], "no task of SUPERB is finished in"),
    ],
)
def test_the_tool_names_what_is_wrong(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/superb.py", *arguments, "--experiment", tmp_path],
        cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "printed"),
    [
        (["--help"], 0, "QbE  query by example"),
        (["KWS", "--experiment", "."], 1, "did you mean 'KS'?"),
        (["--experiment", ".", "none"], 1, "--experiment: there is no folder none"),
    ],
)
def test_a_wrong_call_installs_nothing(tmp_path: Path, arguments: list[str], status: int, printed: str) -> None:
    """In a project whose environment is not there; a Python without packages shows the help."""
    for name in ("tools", "local", "distill"):
        (tmp_path / name).symlink_to(ROOT / name)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    script = (ROOT / "tools/superb.sh").read_text().replace('$(dirname "${BASH_SOURCE[0]}")/..', str(tmp_path))
    done = subprocess.run(
        ["bash", "-c", script, "superb.sh", *arguments],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHON": str(python)},
    )  # fmt: skip
    assert done.returncode == status and printed in done.stdout + done.stderr
    assert not list(tmp_path.glob(".venv*"))


def test_noises_of_conditions_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"conditions\.two: there is no folder .*noise/musan; give --noises, the"
    ):
        superb_tool.distortions(ROOT / "egs/librispeech/conf/cdm0_ft.yaml", tmp_path)


def test_folders_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["superb.sh", "--experiment", "seed-0/exp/dt", "seed-1/exp/dt"])
    with pytest.raises(SystemExit):
        superb_tool.main()
    assert "--experiment: dt is the name of several" in capsys.readouterr().err
