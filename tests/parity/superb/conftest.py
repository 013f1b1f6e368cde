"""Tests against the real s3prl; they run where it is installed: ./tools/test.sh --superb."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = ["test_*.py"] if importlib.util.find_spec("s3prl") is None else []
