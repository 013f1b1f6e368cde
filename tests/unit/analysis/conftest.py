"""Fixtures: a recipe after stage 6."""

from __future__ import annotations

from tests.support.tiny_recipe import tiny, tiny_data  # noqa: F401
