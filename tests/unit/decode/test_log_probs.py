"""Log-probabilities on disk are those that were computed, in their order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distill.decode import log_probs


@pytest.mark.parametrize("frames", [(), (0,), (3,), (3, 0, 2), (0, 5, 1)])
def test_what_is_written_is_read(frames: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = {f"z/{9 - n}.é": rng.normal(size=(count, 4)).astype(np.float32) for n, count in enumerate(frames)}
    log_probs.write(tmp_path, found)
    again = log_probs.read(tmp_path)
    assert list(again) == list(found)
    assert all(np.array_equal(again[name], found[name]) and again[name].shape == found[name].shape for name in found)
