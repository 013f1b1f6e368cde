from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from distill.text import normalise, read_lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello,  world!", "HELLO WORLD"),
        ("it\u2019s  O'Neill's\tdog", "IT'S O'NEILL'S DOG"),
        ("'quoted' words -- and_more", "'QUOTED' WORDS AND MORE"),
        (" ' ... \n", ""),
        ("", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected
    assert normalise(expected) == expected


@pytest.mark.parametrize("name", ["lm.txt", "lm.txt.gz"])
def test_lines_come_one_at_a_time(name: str, tmp_path: Path) -> None:
    content = "ÉTÉ\r\n\nA\u2028B \nlast".encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    lines = read_lines(tmp_path / name)
    assert next(lines) == "ÉTÉ"
    assert list(lines) == ["", "A\u2028B ", "last"]


@pytest.mark.parametrize("name", ["lm.txt", "lm.txt.gz"])
@pytest.mark.parametrize(("bad", "byte"), [("É".encode("latin-1"), "0xc9"), ("A B".encode("utf-16"), "0xff")])
def test_another_encoding_is_named_with_file_line_and_way_out(name: str, bad: bytes, byte: str, tmp_path: Path) -> None:
    content = b"GO TO\nNINE " + bad + b"\nTO\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    lines = read_lines(tmp_path / name)
    assert next(lines) == "GO TO"
    with pytest.raises(ValueError, match=rf"{name}:2: not UTF-8 \(byte {byte} at column 6\); .*iconv -f .* {name}"):
        next(lines)


@pytest.mark.parametrize(
    ("content", "way_out"),
    [("A B".encode("utf-16"), "iconv -f UTF-16"), (gzip.compress(b"A"), r"it is gzipped: name it lm\.txt\.gz")],
    ids=["UTF-16", "gzip"],  # the bytes hold the time
)
def test_other_kinds_of_file_have_their_way_out(content: bytes, way_out: str, tmp_path: Path) -> None:
    (tmp_path / "lm.txt").write_bytes(content)
    with pytest.raises(ValueError, match=way_out):
        list(read_lines(tmp_path / "lm.txt"))
