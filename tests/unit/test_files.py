from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from distill import files
from distill.files import replacing


def test_a_file_appears_whole_under_its_own_name(tmp_path: Path) -> None:
    with replacing(tmp_path / "x.json") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "x.json").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_whatever_ends_the_block_the_old_file_stays_alone(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "x").write_text("old")
    with pytest.raises(type(error)), replacing(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise error
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_is_named_with_file_and_way_out(tmp_path: Path, number: int) -> None:
    message = f"x: {os.strerror(number).lower()}; .* same command again"
    with pytest.raises(OSError, match=message) as raised, replacing(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))
    assert raised.value.errno == number
    assert list(tmp_path.iterdir()) == []


def test_errors_of_other_files_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="input"), replacing(tmp_path / "x"):
        (tmp_path / "input").read_text()


def test_a_real_limit_of_file_size_is_reported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from distill.files import replacing\n"
        f"with replacing(Path({str(tmp_path / 'x')!r})) as t: t.write_bytes(bytes(100_000))"
    )
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # noqa: E731
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=limit)
    assert "x: file too large; allow larger files" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_hides_the_disks_error_is_seen_through(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="x: no space left on device; make room"), replacing(tmp_path / "x") as temporary:
        temporary.write_text("half")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 576 vs 534")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "lang: no space left on device; make room"),
        (RuntimeError("unexpected pos 576 vs 534"), "lang: no space left on device; make room"),
        (ValueError("cut 1: no audio"), ""),
        (KeyboardInterrupt(), ""),
        (FileNotFoundError(errno.ENOENT, "No such file", "cuts"), ""),
    ],
)
def test_the_disks_errors_are_recognised_while_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, message: str
) -> None:
    (tmp_path / "lang").mkdir()
    monkeypatch.setattr(files, "refusal", lambda folder: errno.ENOSPC)
    found = files.of_disk(tmp_path / "lang", error)
    assert message in str(found) if message else found is None


def test_a_librarys_error_stays_where_there_is_room(tmp_path: Path) -> None:
    assert files.refusal(tmp_path) == errno.EIO
    assert files.of_disk(tmp_path, RuntimeError("of its own")) is None
