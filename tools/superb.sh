#!/usr/bin/env bash
# Evaluate experiments on the tasks of SUPERB, in an environment with s3prl (.venv-superb, made when missing).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/local/environment.sh"
install_beside superb
PYTHONPATH="$root" exec "$root/.venv-superb/bin/python" "$root/tools/superb.py" "$@"
