"""Each implementation of the engine that runs on processors."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distill.lfmmi import Engine, TorchEngine
from distill.lfmmi.cpu import CpuEngine

IMPLEMENTATIONS = {"torch": TorchEngine, "cpu": CpuEngine}


@pytest.fixture(params=list(IMPLEMENTATIONS))
def make_engine(request: pytest.FixtureRequest) -> Callable[..., Engine]:
    """Makes an engine of each implementation in turn, with the options it is given."""
    return IMPLEMENTATIONS[request.param]


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()
