"""Fixtures: a tiny corpus."""

from __future__ import annotations

from tests.support.corpora import libri  # noqa: F401
