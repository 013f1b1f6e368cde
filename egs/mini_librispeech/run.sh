#!/usr/bin/env bash
# Mini LibriSpeech: a first run on real speech, downloaded on the first call (0.5 GB); T -> SN -> SS.
set -euo pipefail
corpus=mini_librispeech experiments=teacher,sn,ss
source "$(dirname "${BASH_SOURCE[0]}")/../../local/stage.sh"
run_recipe "$@"
