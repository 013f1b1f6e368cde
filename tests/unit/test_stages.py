"""The stage contract: passed over, done again, continued, refused."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

import pytest

from distill.stages import Recipe, Stage, command_line, recipe_from, recipe_parser, run_stage


def write(folder: Path, text: str = "made") -> None:
    (folder / "file").write_text(text)


def fail_half_way(folder: Path) -> None:
    write(folder, "half")
    raise KeyboardInterrupt


def refuse(folder: Path) -> None:
    raise AssertionError(f"{folder} was up to date")


def test_what_is_done_is_passed_over(tmp_path: Path) -> None:
    stage = Stage(2, tmp_path / "lang", {"units": "phones"}, {})
    assert run_stage(stage, write) is True
    assert run_stage(stage, refuse) is False
    assert (tmp_path / "lang/file").read_text() == "made"


def test_a_changed_setting_is_named_and_done_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_stage(Stage(3, tmp_path / "lm", {"orders": {"unit": 2, "word": 3}}, {}), write)
    with caplog.at_level(logging.INFO):
        assert run_stage(Stage(3, tmp_path / "lm", {"orders": {"unit": 4, "word": 3}}, {}), write)
    assert "orders.unit was 2, is 4" in caplog.text
    assert "orders.word" not in caplog.text


def test_a_changed_input_is_done_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = tmp_path / "lm.txt"
    text.write_text("ONE")
    stage = Stage(3, tmp_path / "lm", {}, {text: 0})
    run_stage(stage, write)
    text.write_text("ONE TWO")
    with caplog.at_level(logging.INFO):
        assert run_stage(stage, write)
    assert "lm.txt changed" in caplog.text


def test_a_remade_input_stage_counts_only_if_it_differs(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run_stage(Stage(2, first, {"x": 1}, {}), write)
    stage = Stage(4, second, {}, {first / "file": 2})
    run_stage(stage, write)
    with Stage(2, first, {"x": 1}, {}).writing() as folder:
        write(folder)
    assert run_stage(stage, refuse) is False
    run_stage(Stage(2, first, {"x": 2}, {}), write)
    assert run_stage(stage, write) is True


def test_a_missing_input_names_its_stage(tmp_path: Path) -> None:
    stage = Stage(4, tmp_path / "graphs", {}, {tmp_path / "lm": 3})
    with pytest.raises(FileNotFoundError, match=r"stage 4 needs .*lm, which stage 3 makes"):
        run_stage(stage, write)
    (tmp_path / "lm").mkdir()
    with pytest.raises(FileNotFoundError, match="stage 3"):
        run_stage(stage, write)
    assert not (tmp_path / "graphs").exists()


def test_a_killed_stage_leaves_nothing_that_looks_done(tmp_path: Path) -> None:
    stage = Stage(2, tmp_path / "lang", {}, {})
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage, fail_half_way)
    assert not (tmp_path / "lang").exists()
    run_stage(stage, lambda folder: (folder / "other").write_text(""))
    assert {p.name for p in (tmp_path / "lang").iterdir()} == {"other", ".done"}


def test_the_old_output_stays_until_the_new_is_complete(tmp_path: Path) -> None:
    run_stage(Stage(2, tmp_path / "lang", {"v": 1}, {}), lambda folder: write(folder, "old"))
    with pytest.raises(KeyboardInterrupt):
        run_stage(Stage(2, tmp_path / "lang", {"v": 2}, {}), fail_half_way)
    assert (tmp_path / "lang/file").read_text() == "old"
    run_stage(Stage(2, tmp_path / "lang", {"v": 2}, {}), lambda folder: write(folder, "new"))
    assert (tmp_path / "lang/file").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lang"]


def test_a_resumable_stage_continues_in_its_folder(tmp_path: Path) -> None:
    stage = Stage(6, tmp_path / "teacher", {"lr": 1}, {}, resumable=True)
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage, fail_half_way)
    assert not stage.up_to_date()
    seen = []
    run_stage(stage, lambda folder: seen.append((folder / "file").read_text()))
    assert seen == ["half"]
    assert stage.up_to_date()


def test_a_resumable_stage_with_other_settings_starts_afresh(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_stage(Stage(6, tmp_path / "teacher", {"lr": 1}, {}, resumable=True), fail_half_way)
    with caplog.at_level(logging.INFO):
        run_stage(
            Stage(6, tmp_path / "teacher", {"lr": 2}, {}, resumable=True),
            lambda folder: write(folder, f"{(folder / 'file').exists()}"),
        )
    assert (tmp_path / "teacher/file").read_text() == "False"
    assert "afresh: lr was 1, is 2" in caplog.text


def test_a_living_process_holds_its_folder(tmp_path: Path) -> None:
    (tmp_path / "lang.lock").write_text(str(os.getppid()))
    with pytest.raises(RuntimeError, match=f"process {os.getppid()} is writing .*lang"):
        run_stage(Stage(2, tmp_path / "lang", {}, {}), write)


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / "lang.lock").write_text(str(gone.pid))
    assert run_stage(Stage(2, tmp_path / "lang", {}, {}), write)
    assert not (tmp_path / "lang.lock").exists()


def a_recipe(tmp_path: Path, *options: str) -> Recipe:
    folders = ["--conf-dir", str(tmp_path), "--data-dir", str(tmp_path / "data"), "--exp-dir", str(tmp_path / "exp")]
    return recipe_from(recipe_parser("test").parse_args(["--corpus", "librispeech", *folders, *options]))


def test_options_become_a_recipe(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path, "--experiment", "sn,ss", "--mini", "true", "--set", "optim.lr=1", "--set", "seed=2")
    assert recipe.names == ("sn", "ss")
    assert recipe.overrides == ("optim.lr=1", "seed=2")
    assert recipe.mini and not recipe.rehearse
    assert recipe.lang == tmp_path / "data/lang_phones"
    assert recipe.corpus_dir is None


def test_an_unknown_experiment_names_the_nearest_first(tmp_path: Path) -> None:
    for name in ("teacher", "ss", "single"):
        (tmp_path / f"{name}.yaml").touch()
    with pytest.raises(FileNotFoundError, match=r"no experiment 'techer' .*there are: teacher, "):
        a_recipe(tmp_path).experiment_yaml("techer")


def test_an_unknown_engine_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--engine nativ is not known; did you mean 'native'"):
        a_recipe(tmp_path, "--engine", "nativ")


def test_k2_where_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--engine k2 needs k2, which this Python does not have"):
        a_recipe(tmp_path, "--engine", "k2")


def test_results_name_the_recipes_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["local/train.py", "--nj", "2"])
    monkeypatch.delenv("RECIPE_COMMAND", raising=False)
    assert command_line() == "local/train.py --nj 2"
    monkeypatch.setenv("RECIPE_COMMAND", r"egs/mine/run.sh --experiment teacher\,sn 'a b'")
    assert command_line() == "egs/mine/run.sh --experiment teacher,sn 'a b'"
