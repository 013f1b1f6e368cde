#!/usr/bin/env bash
# Evaluate experiments on the tasks of SUPERB, in an environment with s3prl (.venv-superb, made when missing).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/local/environment.sh"
export PYTHONPATH="$root"
# help, and what is wrong with a call, before 6 GB are installed: needs the standard library alone
shown=$("${PYTHON:-python3}" "$root/tools/superb.py" --check "$@")
[[ -z $shown ]] || { echo "$shown"; exit 0; }
install_beside superb
exec "$root/.venv-superb/bin/python" "$root/tools/superb.py" "$@"
