"""Fixtures: small models of every kind."""

from __future__ import annotations

from tests.support.models import decoder, model, streaming_model  # noqa: F401
from tests.support.tiny_recipe import tiny, tiny_data  # noqa: F401
