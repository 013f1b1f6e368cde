"""Each implementation of the engine that runs on processors."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distill.kernels.build import find_compiler
from distill.lfmmi import Engine, TorchEngine
from distill.lfmmi.cpu import CpuEngine

NEEDS_COMPILER = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
IMPLEMENTATIONS = {"torch": TorchEngine, "cpu": CpuEngine}


@pytest.fixture(params=["torch", pytest.param("cpu", marks=NEEDS_COMPILER)])
def make_engine(request: pytest.FixtureRequest) -> Callable[..., Engine]:
    """Makes an engine of each implementation in turn, with the options it is given."""
    return IMPLEMENTATIONS[request.param]


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()
