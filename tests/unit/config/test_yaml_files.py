"""YAML files of settings, their bases, and overrides; errors name the place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distill.config.experiment import Experiment
from distill.config.files import overridden, parse_yaml, read
from distill.config.graphs import Graphs

ROOT = "stage: 6\nobjective: {alpha: 1, beta: 1}\noptim: {updates: 10}\n"


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/teacher.yaml").write_text(ROOT)
    (tmp_path / "outside.yaml").write_text(ROOT)
    return tmp_path / "conf"


def load(conf: Path, text: str | bytes, name: str = "mine") -> Experiment:
    (conf / f"{name}.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return Experiment.load(conf / f"{name}.yaml")


def test_bases_in_a_circle_are_shown_as_a_chain(conf: Path) -> None:
    (conf / "b.yaml").write_text("base: mine.yaml")
    with pytest.raises(ValueError, match=r"mine\.yaml -> b\.yaml -> mine\.yaml"):
        load(conf, "base: b.yaml")
    with pytest.raises(ValueError, match=r"mine\.yaml -> mine\.yaml"):
        load(conf, "base: mine.yaml")


def test_a_missing_base_is_shown_with_its_chain(conf: Path) -> None:
    (conf / "b.yaml").write_text("base: techer.yaml")
    with pytest.raises(FileNotFoundError, match=r"mine\.yaml -> b\.yaml -> techer\.yaml\); did you mean 'teacher'"):
        load(conf, "base: b.yaml")


@pytest.mark.parametrize(
    "base",
    ["5", "[teacher.yaml]", "{a: 1}", "true", "''", "../outside.yaml", "a/../../outside.yaml", "/etc/passwd", ".", "..",
     "./teacher.yaml", "2024-01-01.5", "'teacher.yaml\\n'", '"teacher\\0.yaml"', "'  '", "~/x.yaml", "x//y.yaml"],
)  # fmt: skip
def test_a_base_is_the_name_of_a_file_beside_or_below(conf: Path, base: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=r"mine\.yaml: base: must be|mine\.yaml -> 2024"):
        load(conf, f"base: {base}")


def test_a_long_chain_of_bases_is_followed(conf: Path) -> None:
    for number in range(300):
        (conf / f"c{number}.yaml").write_text(f"base: {f'c{number - 1}' if number else 'teacher'}.yaml\nseed: {number}")
    assert Experiment.load(conf / "c299.yaml").seed == 299


def test_a_base_may_lie_below_and_its_name_stays_its_own(conf: Path) -> None:
    (conf / "parts").mkdir()
    (conf / "parts/root.yaml").write_text(ROOT + "name: root_1\n")
    assert load(conf, "base: parts/root.yaml").name == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: teacher.yaml\noptim: {updates: 1}\noptim: {updates: 2}", "line 3: key 'optim' is given twice"),
        ("base: teacher.yaml\noptim: {lr: 1.0, lr: 2.0}", "line 2: key 'lr' is given twice"),
        ("model:\n  encoder:\n    dim: 8\n    'dim': 9", "line 4: key 'dim' is given twice"),
        ("base: teacher.yaml\nseed: 1\nbase: teacher.yaml", "line 3: key 'base' is given twice"),
        ("5: 3", "line 1: key '5' is not text"), ("null: 3", "key 'null' is not text"), ("[a]: 3", "key of type seq"),
        ("a: {true: 3}", "key 'true' is not text"), ("? {a: 1}\n: 2", "key of type map is not text"),
        ("just text", "expected a mapping"), ("- a", "expected a mapping"), ("5", "expected a mapping"),
        ("0", "expected a mapping"), ("[]", "expected a mapping"), ("false", "expected a mapping"),
        ("", "Field required"), ("# nothing", "Field required"), ("a: [", "not valid YAML: line 1"),
        ("a: b: c", "not valid YAML: line 1"), ("\ta: 1", "not valid YAML: line 1"),
        ("a: 1\n---\nb: 2", "not valid YAML: line 2"), ("a: *b", "not valid YAML"),
        ("a:\n" + "- " * 99999, "nested more"),
        ("seed: !!python/name:os.system x", "not valid YAML: line 1"), ("seed: !!timestamp 2024-01-01", "not valid"),
        ("seed: !mine 3", "not valid YAML"), ("seed: !!set {a}", "not valid YAML"), ("seed: !!int x", "not valid YAML"),
        ("seed: !!float ''", "not valid YAML"), ("seed: !!bool x", "not valid YAML"), ("a: \x01", "not valid YAML"),
        ("a: &x [*x]", "nested more than"), ("a: &x {b: *x}", "nested more than"),
        ("a: " + "[" * 500000, "nested more"),
        ("a: " + "{b: " * 30 + "1" + "}" * 30, "nested more than"), (b"# \xfc", "line 1 has byte 0xfc"),
        (b"stage: 6\ndescription: M\xfcller", "line 2 has byte 0xfc, which is not UTF-8"),
        ("stage: 6".encode("utf-16"), "not UTF-8"), (b"\x00" * 9, "not valid YAML"), ("#" * 2000000, "2000000 bytes"),
        ("a: " + "9" * 5000, "not valid YAML"), ("<<: 3", "not valid YAML"),
        ("<<: {a: 1}\n<<: {b: 2}", "is given twice"),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named_with_what_is_wrong(conf: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"mine\.yaml.*" + re.escape(message)):
        load(conf, text)


def test_aliases_of_aliases_do_not_grow_without_bound(conf: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ValueError, match=r"mine\.yaml: more than 10000 values"):
        load(conf, "\n".join(lines))


def test_a_folder_or_nothing_is_no_file(conf: Path) -> None:
    (conf / "folder.yaml").mkdir()
    for name in ("folder", "nothing"):
        with pytest.raises(FileNotFoundError, match=rf"no experiment at .*{name}\.yaml"):
            Experiment.load(conf / f"{name}.yaml")


def test_anchors_merges_and_a_byte_order_mark_are_read(conf: Path) -> None:
    text = "\ufeffbase: teacher.yaml\noptim: &o {lr: 1e-3}\ndata: {lattice: {beam: &b 3, nbest_beam: *b}}\n"
    experiment = load(conf, text)
    assert (experiment.optim.lr, experiment.data.lattice.nbest_beam) == (1e-3, 3)
    assert parse_yaml("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}", "here")["y"] == {"a": 1, "b": 3}


def test_numbers_mean_one_thing() -> None:
    as_number = {
        "1e-3": 1e-3,
        "1.5": 1.5,
        ".5": 0.5,
        "-3": -3,
        "+2": 2,
        "0": 0,
        "2.": 2.0,
        "1E5": 1e5,
        "-.inf": -float("inf"),
    }
    assert {text: parse_yaml(text, "here") for text in as_number} == as_number
    as_text = ["010", "0x1F", "0b1", "0o7", "1_000", "1:30", "2024-01-01", "1e", "--1", "=", "12:30:45.6", "nan", "inf"]
    assert [parse_yaml(text, "here") for text in as_text] == as_text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("=3", "'=3' is not of the form key=value"), ("optim.lr", "not of the form"), ("", "not of the form"),
        ("optim..lr=1", "not of the form"), (".=1", "not of the form"), ("optim.=1", "not of the form"),
        ("optim=5", r"optim: must be a mapping of settings \(got 5\)"), ("optim=", "optim: must be a mapping"),
        ("optim=[1]", "optim: must be a mapping"), ("seed={a: 1}", r"seed: must be a valid integer \(got {'a': 1}\)"),
        ("seed.a=1", "seed: must be"),
        ("optim.updates.x=1", "optim.updates is 10, which has no settings below it"),
        ("a.b=1", "unknown key 'a'"), ("base=teacher.yaml", "unknown key 'base'"), ("optim.lr=[1", "not valid YAML"),
        ("optim={lr: 1, lr: 2}", "key 'lr' is given twice"), ("seed=" + "9" * 5000, "not valid YAML"),
        (".".join("a" * 3000) + "=1", "nested more than"), ("x=" + "[" * 9999, "nested more than"),
        ("optim={1: 2}", "key '1' is not text"), (" seed=1", "unknown key ' seed'; did you mean 'seed'"),
        ("graphs=1", "unknown key 'graphs'"), ("a\nb=1", r"unknown key 'a\\nb'"),
        ("stage=7", "stage: must be 5, 6, 8 or 9"),
    ],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_an_override_that_fits_nowhere_is_named(conf: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"--set .*({message})"):
        Experiment.load(conf / "teacher.yaml", [override])


def test_all_wrong_overrides_and_keys_are_named_at_once(conf: Path) -> None:
    with pytest.raises(ValueError, match=r"'=1' .*'seed' "):
        Experiment.load(conf / "teacher.yaml", ["=1", "seed"])
    with pytest.raises(ValueError, match=r"seed: .*key 'lrr'.*key 'epoch'"):
        Experiment.load(conf / "teacher.yaml", ["optim.lrr=1", "optim.epoch=1", "seed=x"])


def test_an_unknown_key_hides_no_other_error(conf: Path) -> None:
    with pytest.raises(ValueError) as raised:
        Experiment.load(conf / "teacher.yaml", ["optim.lrr=1", "modle.mask.time_length=4", "optim.lr=fast"])
    assert [text.partition(": ")[0] for text in str(raised.value).split("; --set ")] == [
        "--set 'modle.mask.time_length=4'", "'optim.lrr=1'", "'optim.lr=fast'",
    ]  # fmt: skip


def test_an_option_is_named_for_its_own_errors_and_the_file_for_the_others(conf: Path) -> None:
    path = conf / "teacher.yaml"
    path.write_text("{stage: 6, seed: -1, objective: {alpha: 1, beta: 1}, optim: {updates: 10}}")
    with pytest.raises(ValueError) as raised:
        Experiment.load(path, ["optim.lr=fast", "decoding.beam=3"])
    file, option = str(raised.value).split("; ")
    assert file == f"{path}: seed: must be greater than or equal to 0 (got -1)"
    assert option.startswith("--set 'optim.lr=fast': optim.lr: must be a valid number")
    with pytest.raises(ValueError, match=r"^--set 'graphs.order=9': order: must be less"):
        Graphs.load(conf / "none.yaml", ["order=9"])
    path.write_text("{stage: 6, objective: {alpha: 1, beta: 1}, optim: {updates: 10}}")
    with pytest.raises(ValueError, match=r"^--set 'decoding.avg=99': decoding.avg 99 must be at most saving.keep"):
        Experiment.load(path, ["optim.lr=1", "decoding.avg=99"])


def test_a_mapping_is_merged_as_a_base_is(conf: Path) -> None:
    values = read(conf / "teacher.yaml")
    assert overridden(values, ["optim={lr: 1.0}"])["optim"] == {"updates": 10, "lr": 1.0}
    assert values["optim"] == {"updates": 10}
