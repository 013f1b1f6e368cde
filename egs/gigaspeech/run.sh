#!/usr/bin/env bash
# GigaSpeech: T on the 250 hours of S, SN and SS on the audio of XL. The corpus needs a password: docs/data.md.
set -euo pipefail
corpus=gigaspeech experiments=teacher,s5,s5_stream extras=lexicon
mini_conf=../librispeech/conf/mini mini_experiments=teacher,sn,ss # of rehearsals
source "$(dirname "${BASH_SOURCE[0]}")/../../local/stage.sh"
run_recipe "$@"
