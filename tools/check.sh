#!/usr/bin/env bash
# Style and types, in seconds.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
source local/environment.sh
install_environment dev,synth,deploy,serve
.venv/bin/ruff check distill local tools tests
.venv/bin/ruff format --check distill local tools tests
.venv/bin/mypy
