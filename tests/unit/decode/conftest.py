"""Fixtures: a small decoding graph."""

from __future__ import annotations

from tests.support.decoding import small  # noqa: F401
