"""Names that become files and folders: generated ones, right and wrong, against a tree with foreign files in it."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from distill.config.experiment import Experiment
from distill.config.language_model import LanguageModel
from distill.config.names import names_of
from distill.recipe.checks import problems
from distill.recipe.options import Recipe

PIECES = ["a", "T1", "sn", "teacher", "_init", "lm", "..", ".", "/", "-", "--set", " ", "\n", "\t", "\0", "ü", "字",
          "$(id)", "*", "~", "\\", ":", "'", ";", "|", ".tmp", ".old", ".lock", ".aside-3", "_bpe", "_biphones",
          "_two_pdf", "x" * 90, "results.md", "é", "\u202e", "%2e%2e", "&", "C:", "0", "9z", "_", "con"]  # fmt: skip
ENDINGS = (".tmp", ".old", ".lock")
MARKS = tuple(
    f"_{unit}{kind}" for unit in ("phones", "chars", "bpe", "biphones") for kind in ("", "_ctc_compact", "_two_pdf")
)[1:]  # fmt: skip


def generated(count: int, seed: int = 11) -> list[str]:
    draw = random.Random(seed)
    edges = [
        "",
        ".",
        "..",
        "-",
        "/",
        "a/b",
        "/etc/x",
        "~",
        "lm",
        "LM",
        "lm_2",
        "teacher_init",
        "x" * 200,
        "x" * 201,
        "a ",
        " a",
    ]
    made = {"".join(draw.choice(PIECES) for _ in range(draw.randint(1, 3))) for _ in range(count)}
    return [*edges, *sorted(made)]


NAMES = generated(450)


def is_name(text: str) -> bool:
    """By the rule that messages give, read letter by letter."""
    allowed = set(string.ascii_letters + string.digits + "._-")
    of_stages = text.endswith(ENDINGS) or ".aside-" in text
    return set(text) <= allowed and text[:1] not in ("", ".", "-") and len(text) <= 200 and not of_stages


def is_own(text: str) -> bool:
    lower = text.lower()
    of_lm = lower == "lm" or lower.startswith(("lm_", "lm.", "lm-"))
    return is_name(text) and not (of_lm or text.endswith(("_init", *MARKS)) or lower == "results.md")


def attempt(keys: Sequence[str], work: Callable[..., Any], *args: Any) -> bool:
    """Whether it works; an error must name the keys."""
    try:
        work(*args)
    except (ValueError, FileNotFoundError) as error:
        assert all(key in str(error) for key in keys), error
        return False
    return True


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A recipe, with files of others in and beside its folders; nothing of them may change."""
    for name in (
        "mine.txt",
        "exp/mine/a.pt",
        "exp/lm/b.pt",
        "exp/teacher_init/c.pt",
        "data/cuts/d.gz",
        "data/e",
        "tmp/x",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "conf").mkdir()
    teacher = "{stage: 6, init: teacher_init, pretrained: random, objective: {alpha: 1, beta: 1}, optim: {updates: 1}}"
    (tmp_path / "conf/teacher.yaml").write_text(teacher)
    (tmp_path / "conf/lm.yaml").write_text("optim: {updates: 1}")
    before = everything(tmp_path)
    yield tmp_path
    assert everything(tmp_path) == before


def recipe(tree: Path, **options: Any) -> Recipe:
    values = dict.fromkeys(("corpus", "device", "engine", "units", "topology"), "") | {
        "device": "cpu",
        "units": "phones",
    }
    folders = {"conf_dir": tree / "conf", "data_dir": tree / "data", "exp_dir": tree / "exp", "corpus_dir": None}
    rest = {"nj": 1, "mini": False, "rehearse": False, "settings": (), "topology": "ctc"}
    return Recipe(**{**values, **folders, **rest, **options})


def quoted(name: str) -> str:
    """A YAML text that gives this name."""
    letters = (c if c in string.ascii_letters + string.digits else f"\\U{ord(c):08x}" for c in name)
    return f'"{"".join(letters)}"'


def test_there_are_300_of_both_kinds() -> None:
    assert len(NAMES) >= 300
    assert 30 < sum(map(is_name, NAMES)) < 150 and 20 < sum(map(is_own, NAMES)) < 120


def test_generated_names_of_experiments(tree: Path) -> None:
    path = tree / "conf/teacher.yaml"
    for name in NAMES:
        taken = attempt(["name"], Experiment.load, path, [f"name={quoted(name)}"])
        assert taken == is_own(name), name


@pytest.mark.parametrize("key", ["init", "teacher.experiment", "data.valid", "decoding.rescoring_lm", "data.train"])
def test_generated_names_in_settings(tree: Path, key: str) -> None:
    for name in NAMES:
        value = f"[{quoted(name)}]" if key == "data.train" else quoted(name)
        taken = attempt(["--set", key], Experiment.load, tree / "conf/teacher.yaml", [f"{key}={value}"])
        assert taken == is_name(name), name


def test_generated_folders_of_noise(tree: Path) -> None:
    for name in NAMES:
        key, path = "augment.noise_part", tree / "conf/teacher.yaml"
        taken = attempt([key], Experiment.load, path, [f"{key}={quoted(name)}"])
        assert taken == (not name or all(map(is_name, name.split("/")))), name


def test_generated_names_of_language_models(tree: Path) -> None:
    for name in NAMES:
        of_lm = name.lower() == "lm" or name.lower().startswith(("lm_", "lm.", "lm-"))
        taken = attempt(["name"], LanguageModel.load, tree / "conf/lm.yaml", [f"name={quoted(name)}"])
        assert taken == (of_lm and is_name(name)), name


def test_generated_lists_of_options() -> None:
    for name in NAMES:
        if name and "," not in name:
            assert attempt(["--parts"], names_of, "--parts", f"dev,{name}") == is_name(name), name
    for text in ("a,", ",a", "a,,b", ",", "a,a", "a, b"):
        assert not attempt(["--sets"], names_of, "--sets", text)
    assert names_of("--sets", "") == () and names_of("--sets", "dev,test-a") == ("dev", "test-a")


def test_generated_experiments_of_a_call(tree: Path) -> None:
    for name in NAMES:
        own = (f"name={quoted(name)}",)
        found = problems(recipe(tree, names=("teacher",), settings=own), range(14))
        assert (not found) == is_own(name), (name, found)
        assert all("name" in line for line in found)
        if is_name(name) and name != "teacher":
            found = problems(recipe(tree, names=(name,)), range(14))
            assert found and all("no experiment" in line and name in line for line in found)


def test_names_with_the_units_behind_them_fit_too(tree: Path) -> None:
    path, name = tree / "conf/teacher.yaml", "x" * 180
    assert Experiment.load(path, [f"name={name}"], "_bpe").name == f"{name}_bpe"
    with pytest.raises(ValueError, match=r"name: must be a name.*at most 200"):
        Experiment.load(path, [f"name={name}"], "_biphones_ctc_compact")
    loaded = Experiment.load(path, (), "_biphones")
    assert Experiment.parse(loaded.resolved(), "a checkpoint") == loaded
