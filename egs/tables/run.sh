#!/usr/bin/env bash
# The tables of papers/001 on clauses of novels, synthesised: T -> SN -> SS with a pre-trained teacher, on a CPU.
# The sets of experiments are in conf/sets: tools/experiments.py egs/tables/conf/sets/tables.yaml --dir DIR
set -euo pipefail
corpus=tables experiments=hubert1,hubert,teacher_hubert,s5,s5_stream
mini_conf=../librispeech/conf/mini mini_experiments=teacher,sn,ss # of rehearsals
source "$(dirname "${BASH_SOURCE[0]}")/../../local/stage.sh"
run_recipe "$@"
