"""The table of decoding methods, and words that are not scored."""

from __future__ import annotations

from typing import get_args

from distill.config.decoding import Method
from distill.recipe.decoding import DECODERS
from distill.scoring.wer import score, scored_without


def test_every_method_of_the_settings_has_a_decoder() -> None:
    assert tuple(DECODERS) == get_args(Method)


def test_fillers_are_taken_out_of_both_sides() -> None:
    whole = score("u1", ["UH", "I", "SEE", "UM"], ["I", "UH", "SAW"])
    without = scored_without(whole, {"UH", "UM"})
    assert (whole.errors, without.errors, without.sub) == (3, 1, 1)
    assert without.reference == ("I", "SEE") and without.hypothesis == ("I", "SAW")
