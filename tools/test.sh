#!/usr/bin/env bash
# All checks and tests. Arguments go to pytest; without any, all tests run: ./tools/test.sh tests/unit -k stages
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
./tools/check.sh
exec .venv/bin/python -m pytest --durations=10 "${@:-tests}"
