#!/usr/bin/env bash
# Style and types, in seconds.
set -euo pipefail
if (($#)); then
  echo "usage: tools/check.sh    ruff's style and format and mypy's types, of everything; takes no arguments"
  [[ $# -eq 1 && ($1 == -h || $1 == --help) ]] && exit 0
  echo "tools/check.sh: got '$*'" >&2
  exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
source local/environment.sh
install_environment dev,synth,deploy,serve,report,lexicon,vad
.venv/bin/ruff check distill local tools benchmarks tests
.venv/bin/ruff format --check distill local tools benchmarks tests
.venv/bin/mypy
