"""tools/try.sh recognises the recording beside its model, and its model is small."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "egs/spoken_commands/model"
ORDER = "I'D LIKE A LARGE ICED COFFEE WITH SKIM MILK AND A LITTLE BIT OF BROWN SUGAR"
TRY = ROOT / "tools/try.sh"


def test_the_order_is_recognised_word_by_word() -> None:
    done = subprocess.run([TRY], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == ORDER
    partial = done.stderr.splitlines()
    assert ORDER in partial and len([text for text in partial if ORDER.startswith(text)]) > 5


def test_help_lists_the_words() -> None:
    text = subprocess.run([TRY, "--help"], capture_output=True, text=True, check=True).stdout
    words = [line.split()[0] for line in (MODEL / "words.txt").read_text().splitlines()]
    assert {word for word in words if word[0] not in "<#"} <= set(text.split()) and "<s>" not in text


@pytest.mark.parametrize("argument", ["no_such.wav", "--no-such-option"])
def test_a_wrong_call_is_one_line(argument: str) -> None:
    done = subprocess.run([TRY, argument], capture_output=True, text=True, timeout=300)
    assert done.returncode and argument in done.stderr and "Traceback" not in done.stderr


def test_the_model_is_small() -> None:
    assert sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file()) <= 3 * 2**20
