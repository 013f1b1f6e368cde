"""Folders that collide, and 300 generated names, folders and settings beside files that are not the recipe's."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from distill.recipe.folders import REPOSITORY, STARTED
from distill.recipe.options import Recipe, recipe_from, recipe_parser, wrong_folders
from distill.recipe.stage import Stage, run_stage


def recipe(top: Path, data: str = "data", exp: str = "exp", corpus: str = "corpus", **changes: object) -> Recipe:
    (top / "conf").mkdir(parents=True, exist_ok=True)
    for name in ("teacher", "sn", "lm", "graphs"):
        (top / f"conf/{name}.yaml").touch()
    options = Recipe(
        "own", top / "conf", top / data, top / exp, top / corpus, 1, "cpu", "native", "phones", "ctc", False, False, ()
    )  # fmt: skip
    return replace(options, **changes)


def tree(folder: Path) -> dict[str, bytes | str]:
    """Every file below a folder with its content, and every link with where it leads."""
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize(
    ("data", "exp", "corpus"),
    [
        ("data", "exp", "corpus"),
        ("data", "data/exp", "data/corpus"),
        ("exp/data", "exp", "corpus"),
        ("corpus/data", "corpus/exp", "corpus"),
        (".", "exp", "corpus"),
        ("a b", "ä", "x;rm -rf"),
    ],
)
def test_folders_that_may_be(tmp_path: Path, data: str, exp: str, corpus: str) -> None:
    assert not list(wrong_folders(recipe(tmp_path, data, exp, corpus)))


@pytest.mark.parametrize(
    ("data", "exp", "corpus", "names"),
    [
        ("data", "data", "corpus", ("--data-dir", "--exp-dir")),
        ("data", "exp/../data/.", "corpus", ("--data-dir", "--exp-dir")),
        ("link", "target", "corpus", ("--data-dir", "--exp-dir")),
        ("corpus", "exp", "corpus", ("--data-dir", "--corpus-dir")),
        ("data", "corpus", "./corpus/", ("--exp-dir", "--corpus-dir")),
        ("conf", "exp", "corpus", ("--data-dir", "--conf-dir")),
        ("data", "data/lm", "corpus", ("--exp-dir", "data/lm")),
        ("data", "data/lang_phones/x", "corpus", ("--exp-dir", "lang_phones")),
        ("data", "exp", "data/text", ("--corpus-dir", "data/text")),
        ("exp/teacher", "exp", "corpus", ("--data-dir", "exp/teacher")),
        ("exp/lm", "exp", "corpus", ("--data-dir", "exp/lm")),
        ("data", "exp", "exp/teacher_init", ("--corpus-dir", "teacher_init")),
        ("corpus/lm", "exp", "corpus", ("--data-dir", "corpus/lm")),
        ("data", "corpus/test-a/exp", "corpus", ("--exp-dir", "corpus/test-a")),
        ("file", "exp", "corpus", ("--data-dir", "is a file")),
        ("nowhere/x", "exp", "corpus", ("--data-dir", "leads nowhere")),
        ("data", "file/exp", "corpus", ("--exp-dir", "is a file")),
        ("/", "exp", "corpus", ("--data-dir", "folder of its own")),
        ("data", str(Path.home()), "corpus", ("--exp-dir", "folder of its own")),
        ("data", str(REPOSITORY), "corpus", ("--exp-dir", "folder of its own")),
        ("data", str(REPOSITORY.parent), "corpus", ("--exp-dir", "folder of its own")),
        ("data", str(REPOSITORY / "distill"), "corpus", ("--exp-dir", "is the repository's")),
        (str(REPOSITORY / ".venv/x"), "exp", "corpus", ("--data-dir", "is the repository's")),
        (str(REPOSITORY / "egs/librispeech"), "exp", "corpus", ("--data-dir", "is the repository's")),
        (str(REPOSITORY / "egs/librispeech/conf/x"), "exp", "corpus", ("--data-dir", "is the repository's")),
    ],
)  # fmt: skip
def test_folders_that_may_not_be(tmp_path: Path, data: str, exp: str, corpus: str, names: tuple[str, ...]) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "exp").mkdir()
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "file").touch()
    wrong = recipe(tmp_path, data, exp, corpus)
    before = tree(tmp_path)
    errors = "; ".join(wrong_folders(wrong))
    assert errors and all(name in errors for name in names), errors
    assert tree(tmp_path) == before


def test_folders_inside_the_repositorys_recipes_may_be(tmp_path: Path) -> None:
    own = recipe(tmp_path, str(REPOSITORY / "egs/own/data"), str(REPOSITORY / "egs/own/exp-2"))
    assert not list(wrong_folders(own))


def test_a_folder_of_audio_as_a_whole_takes_no_folders_of_ours(tmp_path: Path) -> None:
    own = replace(recipe(tmp_path, "corpus/data"), corpus="custom")
    (error,) = wrong_folders(own)
    assert error.startswith("--data-dir") and "all of which is the labelled part; give another" in error
    (tmp_path / "corpus/labelled").mkdir(parents=True)
    assert not list(wrong_folders(own))


def test_every_script_checks_the_folders(tmp_path: Path) -> None:
    options = [f"--{name}-dir={tmp_path}" for name in ("conf", "data", "exp")]
    with pytest.raises(ValueError, match="--data-dir and --exp-dir are the same folder"):
        recipe_from(recipe_parser("test").parse_args(["--corpus", "own", *options]))


# Generated: what lies in the way, how it is called, what is asked for

PARTS = ("data", "exp", "corpus", "lm", "text", "teacher", "teacher_init", "labelled", "cuts", "..", ".", "link", "ä b")
NAMES = (
    "teacher", "sn", "lm", "teacher_init", "..", ".", "", "../exp2", "a/b", "/etc", "x\ny", "-rf", "*", "ä", "CON",
    "a" * 300, "teacher.tmp", "teacher.aside-1", ".done", "$(touch x)", "notes.txt", "mine",
)  # fmt: skip
MARKS = ("", "{", "[]", "null", "7", '{"settings": {}, "inputs": {}, "stage": 3, "hash": "x"}', '{"settings": 1}')


def users_tree(top: Path, draw: random.Random) -> None:
    """Files of the user, some where stages write, some with what looks like a mark beside them."""
    for folder in draw.sample(PARTS[:9], 5):
        for below in ("", *draw.sample(PARTS[:9], 3)):
            place = top / folder / below
            place.mkdir(parents=True, exist_ok=True)
            (place / "notes.txt").write_text(f"{folder}/{below}")
            if draw.random() < 0.3:
                (place / draw.choice((".done", ".started"))).write_text(draw.choice(MARKS[:5]))
    (top / "link").symlink_to(draw.choice(PARTS[:9]))


def run_all(asked: Recipe, name: str, value: int) -> None:
    """What stages of every kind do with the folders of a recipe."""
    if errors := list(wrong_folders(asked)):
        raise ValueError("; ".join(errors))
    run_stage(Stage(0, asked.data_dir / "audio", {"v": value}, {}, True), lambda f: (f / "1.wav").write_text("x"))
    run_stage(Stage(3, asked.lm, {"v": value}, {}), lambda f: (f / "units.pt").write_text(f"{value}"))
    run_stage(Stage(5, asked.exp("teacher_init"), {"v": value}, {}), lambda f: (f / "epoch-0.pt").write_text("x"))
    run_stage(Stage(6, asked.exp(name), {"v": value}, {}, True), lambda f: (f / "epoch-1.pt").write_text(f"{value}"))
    run_stage(Stage(11, asked.exp("lm"), {"v": value}, {}, True), lambda f: (f / "epoch-1.pt").write_text("x"))


@pytest.mark.parametrize("tens", range(30))
def test_300_generated_calls_touch_no_file_of_the_user(
    tmp_path: Path, tens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)  # the disk may take its time
    for seed in range(10 * tens, 10 * tens + 10):
        check_generated(tmp_path / f"{seed}", random.Random(seed))


def check_generated(tmp_path: Path, draw: random.Random) -> None:
    top = tmp_path / "top"
    users_tree(top, draw)
    mine = sorted(value for path, value in tree(top).items() if path.endswith("notes.txt"))
    places = ["/".join(draw.choices(PARTS, k=draw.randint(1, 2))) for _ in range(3)]
    asked, name = recipe(top, *places), draw.choice(NAMES)
    before = tree(top)
    for value in range(2):
        try:
            run_all(asked, name, value)
        except (ValueError, OSError) as error:
            assert any(part in str(error) for part in ("-dir", "name", *PARTS[:9]))
    after = tree(tmp_path)
    assert sorted(value for path, value in after.items() if path.endswith("notes.txt")) == mine
    for path, value in before.items():  # a file is where it was, or in a folder put aside, where a stage continues
        kept = [v for p, v in after.items() if p == f"top/{path}" or (".aside-" in p and p.endswith(Path(path).name))]
        assert value in kept or path.endswith(STARTED), path
