#!/usr/bin/env bash
# All checks and tests. Arguments go to pytest; without any, all tests run: ./tools/test.sh tests/unit -k stages
# With --k2 first: the tests against the real k2, in an environment of their own (.venv-k2, made when missing).
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  cat <<END
usage: tools/test.sh [arguments of pytest]         style, types and tests; all of them without arguments
       tools/test.sh --k2 [arguments of pytest]    the tests against the real k2, in an environment of their own
TEST_PROCESSES (2): processes that the tests run in. For pytest's own options: .venv/bin/python -m pytest --help
END
  exit 0
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
if [[ ${1:-} == --k2 ]]; then
  shift
  source local/environment.sh
  install_k2_environment
  PYTHONPATH="$root" exec .venv-k2/bin/python -m pytest -o testpaths=tests/parity/k2 --durations=10 "$@"
fi
./tools/check.sh
# a file's tests stay in one process: the rehearsal in one, all else in the other
exec .venv/bin/python -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile --durations=10 "${@:-tests}"
