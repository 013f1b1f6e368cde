"""Fixtures: a small lexicon."""

from __future__ import annotations

from tests.support.lang import lang  # noqa: F401
