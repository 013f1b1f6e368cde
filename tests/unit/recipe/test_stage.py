"""The stage contract: passed over, done again, continued, refused."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch

from distill.recipe.options import Recipe, recipe_from, recipe_parser
from distill.recipe.provenance import command_line, hardware
from distill.recipe.script import run_script
from distill.recipe.stage import Stage, run_stage


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
    assert run_stage(Stage(2, first, {"x": 2}, {}), write) is True
    assert run_stage(stage, refuse) is False
    run_stage(Stage(2, first, {"x": 3}, {}), partial(write, text="made otherwise"))
    assert run_stage(stage, write) is True


def cut_sets(folder: Path, contents: Mapping[str, str]) -> Stage:
    """Stage 0 of these files, run."""
    stage = Stage(0, folder / "data/cuts", {"parts": contents}, {})
    run_stage(stage, lambda out: [(out / name).write_text(text) for name, text in contents.items()] and None)
    return stage


def as_of_an_earlier_version(folder: Path) -> None:
    """Marks named no contents."""
    mark = json.loads((folder / ".done").read_text())
    (folder / ".done").write_text(json.dumps({k: v for k, v in mark.items() if k not in ("contents", "kept")}))


def test_files_that_stay_the_same_are_no_change_for_who_reads_them(tmp_path: Path) -> None:
    cuts = cut_sets(tmp_path, {"labelled": "a", "test": "b"}).out
    of_file, of_folder = (Stage(6, tmp_path / f"exp/{path.name}", {}, {path: 0}) for path in (cuts / "labelled", cuts))
    for stage in (of_file, of_folder):
        run_stage(stage, write)
    for changed in ({"labelled": "a", "test": "c"}, {"labelled": "a", "test": "c", "test-2": "d"}, {"labelled": "a"}):
        cut_sets(tmp_path, changed)
        assert run_stage(of_file, refuse) is False
        assert run_stage(of_folder, write) is True
    cut_sets(tmp_path, {"labelled": "e"})
    assert run_stage(of_file, write) is True


def test_the_same_files_made_elsewhere_or_once_more_are_the_same(tmp_path: Path) -> None:
    cuts = cut_sets(tmp_path, {"labelled": "a", "test": "b"}).out
    reader = Stage(6, tmp_path / "exp/t", {}, {cuts / "labelled": 0})
    run_stage(reader, write)
    cut_sets(tmp_path, {"labelled": "a"})
    shutil.rmtree(cuts)
    cut_sets(tmp_path, {"labelled": "a", "test": "c"})
    assert run_stage(reader, refuse) is False


def test_other_files_of_the_same_settings_are_noticed(tmp_path: Path) -> None:
    """As where audio changes that is no input of the stage; and where a folder is the same by its settings alone."""
    made = Stage(0, tmp_path / "cuts", {}, {})
    run_stage(made, write)
    reader = Stage(6, tmp_path / "exp/t", {}, {tmp_path / "cuts/file": 0})
    run_stage(reader, write)
    (tmp_path / "cuts/file").write_text("made by hand")  # what it is does not count, but what the stage writes
    with made.writing() as folder:
        write(folder)
    assert run_stage(reader, refuse) is False
    with made.writing() as folder:
        write(folder, "otherwise")
    assert run_stage(reader, write) is True


def test_a_linked_file_that_is_overwritten_in_place_is_noticed(tmp_path: Path) -> None:
    arpa = tmp_path / "3-gram.arpa"
    arpa.write_text("ONE")
    for earlier in (False, True):  # with a mark of an earlier version
        text = Stage(0, tmp_path / "text", {}, {arpa: None})
        run_stage(text, lambda folder: (folder / "arpa").hardlink_to(arpa))
        reader = Stage(3, tmp_path / "lm", {}, {tmp_path / "text": 0})
        run_stage(reader, write)
        if earlier:
            mark = json.loads((text.out / ".done").read_text())
            (text.out / ".done").write_text(
                json.dumps({k: v for k, v in mark.items() if k not in ("contents", "kept")})
            )
        arpa.write_text(arpa.read_text() + " TWO")
        assert run_stage(text, lambda folder: (folder / "arpa").hardlink_to(arpa))
        assert run_stage(reader, write) is True


def test_marks_of_earlier_versions_count_by_what_lies_there(tmp_path: Path) -> None:
    cuts = cut_sets(tmp_path, {"labelled": "a", "test": "b"}).out
    as_of_an_earlier_version(cuts)
    reader = Stage(6, tmp_path / "exp/t", {}, {cuts / "labelled": 0})
    run_stage(reader, write)
    for changed, up_to_date in (
        ({"labelled": "a"}, True),
        ({"labelled": "a", "test": "c"}, True),
        ({"labelled": "d"}, False),
    ):
        cut_sets(tmp_path, changed)
        assert reader.up_to_date() is up_to_date


def test_inputs_that_an_earlier_version_named_may_be_gone(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.flac", "b.flac")]
    for path in paths:
        path.write_text("audio")
    run_stage(Stage(0, tmp_path / "audio", {}, dict.fromkeys(paths), resumable=True), write)
    narrowed = partial(Stage, 0, tmp_path / "audio", {}, dict.fromkeys(paths[:1]), resumable=True)
    assert not narrowed().up_to_date()
    assert narrowed(narrowed=True).up_to_date()
    paths[0].write_text("other audio")
    assert not narrowed(narrowed=True).up_to_date()


def test_settings_of_noise_count_where_they_are_known(tmp_path: Path) -> None:
    def stage(**noise: str) -> Stage:
        return Stage(6, tmp_path / "exp", {"seed": 1, **({"noise_files": noise} if noise else {})}, {})

    run_stage(stage(), write)
    assert stage(a="1").up_to_date()
    with stage(a="1").writing() as folder:
        write(folder)
    assert stage().up_to_date() and stage(a="1").up_to_date() and stage(b="2").up_to_date()
    assert not stage(a="2").up_to_date()


def test_a_mark_of_a_folder_as_a_whole_is_one_of_its_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cuts = cut_sets(tmp_path, {"labelled": "a", "dev": "b"}).out
    as_of_an_earlier_version(cuts)
    run_stage(Stage(6, tmp_path / "exp/t", {}, {cuts: 0}), write)
    stage = Stage(6, tmp_path / "exp/t", {}, {cuts / "labelled": 0, cuts / "dev": 0})
    assert run_stage(stage, refuse) is False
    cut_sets(tmp_path, {"labelled": "a", "dev": "b", "test": "c"})
    assert run_stage(stage, refuse) is False
    cut_sets(tmp_path, {"labelled": "a", "dev": "d", "test": "c"})
    caplog.set_level("INFO")
    assert run_stage(stage, write) is True
    assert "cuts/dev is new" in caplog.text


def test_touched_inputs_are_the_same(tmp_path: Path) -> None:
    text = tmp_path / "lm.txt"
    text.write_text("ONE")
    stage = partial(Stage, 3, tmp_path / "lm", {}, {text: None})
    run_stage(stage(), write)
    for change in (lambda: os.utime(text, (1, 1)), lambda: text.unlink()):
        change()
        text.write_text("ONE")
        assert run_stage(stage(), refuse) is False


def test_unchanged_inputs_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "lm.txt"
    text.write_text("ONE")
    stage = partial(Stage, 3, tmp_path / "lm", {}, {text: None})
    run_stage(stage(), write)
    os.utime(text, (1, 1))
    assert stage().up_to_date()  # read again, and remembered
    monkeypatch.setattr("distill.recipe.contents.file_hash", lambda path: pytest.fail(f"{path} was read again"))
    assert stage().up_to_date()


def test_same_size_and_time_in_another_place_is_read_again(tmp_path: Path) -> None:
    text, other = tmp_path / "lm.txt", tmp_path / "other"
    for path, content in ((text, "ONE"), (other, "TWO")):
        path.write_text(content)
        os.utime(path, (1, 1))
    stage = partial(Stage, 3, tmp_path / "lm", {}, {text: None})
    run_stage(stage(), write)
    other.replace(text)
    assert not stage().up_to_date()


def test_files_of_one_name_in_folders_of_one_name_all_count(tmp_path: Path) -> None:
    paths = [tmp_path / part / "103" / "a.txt" for part in ("train", "dev")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text("ONE")
    stage = partial(Stage, 0, tmp_path / "manifests", {}, dict.fromkeys(paths))
    run_stage(stage(), write)
    for path in paths:
        path.write_text("TWO")
        assert run_stage(stage(), write) is True


def test_added_and_removed_inputs_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_text("")
    run_stage(Stage(0, tmp_path / "out", {}, {tmp_path / "a.wav": None}), write)
    with caplog.at_level(logging.INFO):
        run_stage(Stage(0, tmp_path / "out", {}, {tmp_path / "b.wav": None}), write)
    assert "a.wav is gone" in caplog.text and "b.wav is new" in caplog.text


@pytest.mark.parametrize("resumable", [False, True])
def test_a_renamed_folder_of_a_recipe_changes_nothing(tmp_path: Path, resumable: bool) -> None:
    def stage(data: Path, exp: Path) -> Stage:
        inputs = {data / "cuts": 0, data / "num/teacher": 7, exp / "teacher": 6, exp / "text": 0}
        return Stage(8, exp / "sn", {}, inputs, resumable)

    for number, name in ((0, "data/cuts"), (7, "data/num/teacher"), (6, "exp/teacher")):
        run_stage(Stage(number, tmp_path / name, {"made": name}, {}), write)
    (tmp_path / "exp/text").write_text("ONE")
    run_stage(stage(tmp_path / "data", tmp_path / "exp"), write)
    for name in ("data", "exp"):
        (tmp_path / name).rename(tmp_path / f"{name}-2026")
    moved = stage(tmp_path / "data-2026", tmp_path / "exp-2026")
    assert run_stage(moved, refuse) is False
    run_stage(Stage(6, tmp_path / "exp-2026/teacher", {"made": "otherwise"}, {}), partial(write, text="otherwise"))
    assert moved.up_to_date() is False


def test_inputs_of_the_user_that_are_moved_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Their places stand in what is made of them."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a.wav").write_text("")
    run_stage(Stage(0, tmp_path / "out", {}, {tmp_path / "one/a.wav": None}), write)
    (tmp_path / "one").rename(tmp_path / "two")
    with caplog.at_level(logging.INFO):
        assert run_stage(Stage(0, tmp_path / "out", {}, {tmp_path / "two/a.wav": None}), write)
    assert "one/a.wav is gone" in caplog.text and "two/a.wav is new" in caplog.text


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
    assert (tmp_path / "teacher.aside-1/file").read_text() == "half"


# What stages find that they have not made


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but locks, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


BAD_MARKS = {
    "missing": None, "empty": b"", "cut": b'{"settings": {"lr": 1', "binary": b"\xff\x00\xfe", "list": b"[]",
    "number": b"3", "string": b'"x"', "null": b"null", "other": b'{"hash": "abc"}',
    "odd": b'{"settings": 1, "inputs": 2, "hash": 3}', "deep": b"[" * 100_000,
}  # fmt: skip


def spoil(path: Path, content: bytes | None) -> None:
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


@pytest.mark.parametrize("content", BAD_MARKS.values(), ids=BAD_MARKS)
def test_a_training_with_a_bad_mark_is_put_aside(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "epoch-9.pt").write_text("precious")
    spoil(folder / ".started", content)
    assert run_stage(Stage(6, folder, {}, {}, resumable=True), write)
    assert (tmp_path / "teacher.aside-1/epoch-9.pt").read_text() == "precious"
    assert not (folder / "epoch-9.pt").exists()
    assert "teacher.aside-1" in caplog.text and ".started" in caplog.text


def test_a_training_whose_mark_is_a_folder_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "teacher/.started").mkdir(parents=True)
    assert run_stage(Stage(6, tmp_path / "teacher", {}, {}, resumable=True), write)
    assert (tmp_path / "teacher.aside-1/.started").is_dir()


def test_trainings_put_aside_never_meet(tmp_path: Path) -> None:
    for rate in range(4):
        run_stage(Stage(6, tmp_path / "t", {"lr": rate}, {}, resumable=True), lambda f, r=rate: write(f, f"{r}"))
    assert {p.name: (p / "file").read_text() for p in tmp_path.iterdir()} == {
        "t.aside-1": "0", "t.aside-2": "1", "t.aside-3": "2", "t": "3",
    }  # fmt: skip


@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize("content", BAD_MARKS.values(), ids=BAD_MARKS)
def test_a_bad_done_is_not_done_or_an_error_with_its_name(
    tmp_path: Path, content: bytes | None, resumable: bool
) -> None:
    stage = partial(Stage, 6, tmp_path / "out", {}, {}, resumable)
    run_stage(stage(), write)
    spoil(tmp_path / "out/.done", content)
    if resumable:
        seen: list[str] = []
        assert run_stage(stage(), lambda folder: seen.append((folder / "file").read_text()))
        assert seen == ["made"] and stage().up_to_date()
    else:
        with pytest.raises(ValueError, match=r"out/\.done"):
            run_stage(stage(), write)
        assert (tmp_path / "out/file").read_text() == "made"


@pytest.mark.parametrize("resumable", [False, True])
def test_a_done_that_is_a_folder_is_named(tmp_path: Path, resumable: bool) -> None:
    stage = partial(Stage, 6, tmp_path / "out", {}, {}, resumable)
    run_stage(stage(), write)
    (tmp_path / "out/.done").unlink()
    (tmp_path / "out/.done").mkdir()
    with pytest.raises(ValueError, match=r"out/\.done is a folder"):
        run_stage(stage(), write)


def test_an_input_with_a_bad_done_is_named(tmp_path: Path) -> None:
    run_stage(Stage(3, tmp_path / "lm", {}, {}), write)
    (tmp_path / "lm/.done").write_text("[]")
    with pytest.raises(FileNotFoundError, match=r"stage 3 makes \(.*lm/\.done does not name"):
        run_stage(Stage(4, tmp_path / "graphs", {}, {tmp_path / "lm": 3}), write)


@pytest.mark.parametrize("name", ["lm", "lm.tmp", "lm.old"])
@pytest.mark.parametrize("mark", [None, "", "{}"])
def test_folders_that_no_stage_made_stay_as_they_are(tmp_path: Path, name: str, mark: str | None) -> None:
    (tmp_path / name / "below").mkdir(parents=True)
    (tmp_path / name / "below/lm.txt").write_text("mine")
    if mark is not None:
        (tmp_path / name / ".done").write_text(mark)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}/{name}, but something .*--data-dir"):
        run_stage(Stage(3, tmp_path / "lm", {}, {}), write)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("resumable", [False, True])
def test_a_file_in_the_place_of_a_folder_stays(tmp_path: Path, resumable: bool) -> None:
    (tmp_path / "lm").write_text("mine")
    with pytest.raises(ValueError, match="lm, and that is a file"):
        run_stage(Stage(3, tmp_path / "lm", {}, {}, resumable), write)
    assert tree(tmp_path) == {"lm": b"mine"}


@pytest.mark.parametrize("resumable", [False, True])
def test_what_another_stage_made_is_not_replaced(tmp_path: Path, resumable: bool) -> None:
    run_stage(Stage(11, tmp_path / "lm", {}, {}, resumable), write)
    with pytest.raises(ValueError, match=r"stage 3 writes .*lm, but stage 11 made it"):
        run_stage(Stage(3, tmp_path / "lm", {"other": 1}, {}, resumable), write)


def test_an_output_with_files_of_the_user_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_stage(Stage(3, tmp_path / "lm", {"v": 1}, {}), write)
    (tmp_path / "lm/notes.txt").write_text("mine")
    run_stage(Stage(3, tmp_path / "lm", {"v": 2}, {}), lambda folder: write(folder, "new"))
    assert (tmp_path / "lm.aside-1/notes.txt").read_text() == "mine" and "notes.txt" in caplog.text
    assert (tmp_path / "lm/file").read_text() == "new" and not (tmp_path / "lm/notes.txt").exists()


@pytest.mark.parametrize("name", ["lang", "lang.tmp"])
def test_an_empty_folder_is_used(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert run_stage(Stage(2, tmp_path / "lang", {}, {}), write)
    assert [path.name for path in tmp_path.iterdir()] == ["lang"]


def test_a_failed_stage_gives_its_room_back(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_stage(Stage(2, tmp_path / "lang", {}, {}), fail_half_way)
    assert list(tmp_path.iterdir()) == []


class Killed:
    """Ends the process at the n-th change of the file system that a stage makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.left = after
        for module, name in ((os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "mkdir")):
            monkeypatch.setattr(module, name, partial(self.call, getattr(module, name)))

    def call(self, function, *args, **options):
        self.left -= 1
        if self.left < 0:
            os._exit(9)
        return function(*args, **options)


@pytest.mark.parametrize("resumable", [False, True])
def test_killed_at_any_change_a_stage_is_made_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumable: bool
) -> None:
    ended = 0
    for after in range(40):
        folder = tmp_path / f"{after}"
        run_stage(Stage(2, folder / "lang", {"v": 1}, {}, resumable), write)
        child = os.fork()
        if not child:
            Killed(monkeypatch, after)
            run_stage(Stage(2, folder / "lang", {"v": 2}, {}, resumable), lambda f: write(f, "new"))
            os._exit(0)
        ended += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        run_stage(Stage(2, folder / "lang", {"v": 2}, {}, resumable), lambda f: write(f, "new"))
        assert (folder / "lang/file").read_text() == "new"
        assert {p.name for p in folder.iterdir()} - {"lang"} == ({"lang.aside-1"} if resumable else set())
        marks = {".done", ".started"} if resumable else {".done"}
        assert {p.name for p in (folder / "lang").iterdir()} == {"file", *marks}, after
    assert ended > 5


def test_a_read_only_folder_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "big"))

    with pytest.raises(SystemExit) as ended:
        run_script(lambda: run_stage(Stage(2, tmp_path / "lang", {}, {}), full))
    assert (
        ended.value.code == 1
        and "No space left on device: " in caplog.text
        and "lang.tmp/big; make room" in caplog.text
    )
    assert len(caplog.records) == 1 and list(tmp_path.iterdir()) == []


def test_a_full_disk_without_a_files_name_is_named_by_the_stages_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def full(folder: Path) -> None:
        write(folder, "half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SystemExit):
        run_script(lambda: run_stage(Stage(2, tmp_path / "lang", {}, {}), full))
    assert f"cannot write {tmp_path}/lang.tmp: no space left on device; make room" in caplog.text
    assert len(caplog.records) == 1 and list(tmp_path.iterdir()) == []


def a_recipe(tmp_path: Path, *options: str) -> Recipe:
    folders = ["--conf-dir", str(tmp_path), "--data-dir", str(tmp_path / "data"), "--exp-dir", str(tmp_path / "exp")]
    return recipe_from(recipe_parser("test").parse_args(["--corpus", "librispeech", *folders, *options]))


def test_options_become_a_recipe(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path, "--experiment", "sn,ss", "--mini", "true", "--set", "optim.lr=1", "--set", "seed=2")
    assert recipe.names == ("sn", "ss")
    assert recipe.overrides == {"": ("optim.lr=1", "seed=2"), "graphs.": (), "lm.": ()}
    assert recipe.mini and not recipe.rehearse
    assert recipe.lang == tmp_path / "data/lang_phones"
    assert recipe.corpus_dir is None


def test_an_unknown_experiment_names_the_nearest(tmp_path: Path) -> None:
    for name in ("teacher", "ss", "single"):
        (tmp_path / f"{name}.yaml").touch()
    with pytest.raises(FileNotFoundError, match=r"no experiment 'techer' .*; did you mean 'teacher'"):
        a_recipe(tmp_path).experiment_yaml("techer")


def test_an_unknown_engine_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--engine nativ is not known; did you mean 'native'"):
        a_recipe(tmp_path, "--engine", "nativ")


def test_k2_where_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--engine k2 needs k2, which this Python does not have"):
        a_recipe(tmp_path, "--engine", "k2")


def test_a_missing_compiler_is_named_before_the_first_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "")
    with pytest.raises(ValueError, match=r"no C\+\+ compiler .*install one"):
        a_recipe(tmp_path)


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/abs", "../x", "a\nb", "a b", "t.aside-1"])
def test_an_experiments_folder_lies_in_the_exp_dir(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="expected letters a to z, digits"):
        a_recipe(tmp_path).exp(name)


def test_results_name_the_recipes_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["local/train.py", "--nj", "2"])
    monkeypatch.delenv("RECIPE_COMMAND", raising=False)
    assert command_line() == "local/train.py --nj 2"
    monkeypatch.setenv("RECIPE_COMMAND", r"egs/mine/run.sh --experiment teacher\,sn 'a b'")
    assert command_line() == "egs/mine/run.sh --experiment teacher,sn 'a b'"


def test_processors_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = "processor: 0\nmodel name\t: AMD EPYC\ncpu family\t: 26\nmodel\t\t: 2\n\nprocessor: 1\nmodel name: other\n"
    monkeypatch.setattr(Path, "read_text", lambda path: blocks)
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert hardware(torch.device("cpu")) == "AMD EPYC 26/2 (AVX512), 8 of 64 cores"
