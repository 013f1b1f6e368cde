"""What is said before anything is installed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("room", "message"), [("0 0", ""), ("900000 1", "installing needs 900001 GiB free in ")])
def test_a_full_disk_is_told_before_installing(room: str, message: str) -> None:
    script = f"root={ROOT}; TMPDIR=$root; source $root/local/environment.sh; need_room {room}"
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True)
    assert bool(done.returncode) == bool(message)
    assert done.stderr.startswith(message)
