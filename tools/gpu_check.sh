#!/usr/bin/env bash
# Everything that only a GPU can show, within 8 minutes: tools/gpu_check.sh --json benchmarks/results/gpu_check.json
#
# A machine without a network needs torch, triton and a C++ compiler, and the other packages as files in wheels/, which
# are installed into a temporary folder. To fill it, on a machine with a network, for the Python of the other (3.12):
#
#   options="-d wheels --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64"
#   pip download $options pydantic
#   pip download $options --no-deps -c constraints.txt lhotse audioread click cytoolz toolz intervaltree sortedcontainers \
#     lilcom soundfile cffi pycparser kaldifst kaldialign kaldi-native-fbank espeakng-loader
#
# --data-dir and --exp-dir: folders of the mini recipe with stages 0 to 5 done (run.sh --mini true --stop-stage 5).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[[ -x $python || -n ${PYTHON:-} ]] || python=python3
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if compgen -G "$root/wheels/*.whl" >/dev/null; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$root"/wheels/*.whl
fi
PYTHONPATH="$root:$site" "$python" -m benchmarks.gpu_check "$@"
