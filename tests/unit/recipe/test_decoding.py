"""The table of decoding methods."""

from __future__ import annotations

from typing import get_args

from distill.config.decoding import Method
from distill.recipe.decoding import DECODERS


def test_every_method_of_the_settings_has_a_decoder() -> None:
    assert tuple(DECODERS) == get_args(Method)
