#!/usr/bin/env bash
# Data of one's own, --corpus-dir DIR: folders of audio with transcripts, Kaldi data directories or lhotse cuts.
set -euo pipefail
corpus=custom experiments=teacher,sn,ss extras=lexicon,vad
mini_conf=../librispeech/conf/mini mini_experiments=teacher,sn,ss # of rehearsals
source "$(dirname "${BASH_SOURCE[0]}")/../../local/stage.sh"
run_recipe "$@"
