#!/usr/bin/env bash
# All checks and tests. Arguments go to pytest; without any, all tests run: ./tools/test.sh tests/unit -k stages
# With --k2 or --superb first: the tests against the real k2 or s3prl, in environments of their own, made when missing.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  cat <<END
usage: tools/test.sh [arguments of pytest]             style, types and tests; all of them without arguments
       tools/test.sh --k2 [arguments of pytest]        the tests against the real k2, in an environment of their own
       tools/test.sh --superb [arguments of pytest]    tasks of SUPERB by the real s3prl, likewise
TEST_PROCESSES (2): processes that the tests run in. For pytest's own options: .venv/bin/python -m pytest --help
END
  exit 0
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
if [[ ${1:-} == --k2 || ${1:-} == --superb ]]; then
  name=${1#--}
  shift
  source local/environment.sh
  install_beside "$name"
  PYTHONPATH="$root" exec ".venv-$name/bin/python" -m pytest -o testpaths="tests/parity/$name" --durations=10 "$@"
fi
./tools/check.sh
# A file's tests stay in one process, in the order of the folders: the longest, of tests/recipe, begin early, so that
# no process ends with one of them while the other has nothing left.
exec .venv/bin/python -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder \
  --durations=10 "${@:-tests}"
