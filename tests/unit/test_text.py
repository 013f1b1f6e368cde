from __future__ import annotations

import pytest

from distill.text import normalise


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
