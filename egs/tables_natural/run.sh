#!/usr/bin/env bash
# The clauses of egs/tables by a natural synthesiser: do its findings hold for other speech? Experiments are those of egs/tables.
set -euo pipefail
corpus=tables_natural experiments=hubert1,hubert,teacher_hubert,s5,s5_stream extras=natural
mini_conf=../librispeech/conf/mini mini_experiments=teacher,sn,ss # of rehearsals
source "$(dirname "${BASH_SOURCE[0]}")/../../local/stage.sh"
run_recipe "$@"
