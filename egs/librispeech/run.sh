#!/usr/bin/env bash
# LibriSpeech: T -> SN -> SS (papers/001). --mini true runs all of it on an embedded corpus, on a CPU.
set -euo pipefail
corpus=librispeech
experiments=teacher,s5,s5_stream,s5_single
mini_experiments=teacher,sn,ss
source "$(dirname "${BASH_SOURCE[0]}")/../../local/stage.sh"
run_recipe "$@"
