"""Fixtures: engines."""

from __future__ import annotations

from tests.support.engines import engine, make_engine  # noqa: F401
