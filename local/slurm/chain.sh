#!/usr/bin/env bash
# All stages of a recipe as Slurm jobs, each after the one before; variables give the options of sbatch:
#   jobs=40 cpu="--partition=cpu --cpus-per-task=16" gpu="--gpus-per-node=1" nodes="--nodes=2 --gpus-per-node=8" \
#     local/slurm/chain.sh egs/librispeech/run.sh --corpus-dir DIR
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${jobs:=40}" "${cpu:=}" "${gpu:=--gpus-per-node=1}" "${nodes:=--gpus-per-node=8}"
run=("$@") last=""
[[ -f ${1-} && $1 == */run.sh ]] || { echo "chain.sh: expected egs/CORPUS/run.sh and its options (got '${1-}')" >&2; exit 2; }
for option; do
  [[ ! $option =~ ^--(stage|stop-stage|device|job|launcher)$ ]] || { echo "chain.sh: leave out $option, which the chain gives" >&2; exit 2; }
done

# submit AFTER SCRIPT "options of sbatch" FIRST LAST [option…]: stages FIRST to LAST, once the Slurm job before has ended
# well (afterok) or anyhow (afterany: what dead jobs of an array have left, the next call makes).
submit() {
  local after=$1 script=$2 options=$3 stages=(--stage "$4" --stop-stage "$5")
  shift 5
  # shellcheck disable=SC2086 # the options are words
  last=$(sbatch --parsable ${last:+--kill-on-invalid-dep=yes --dependency="$after:$last"} $options \
    "$folder/$script" "${run[@]}" "${stages[@]}" "$@")
  last=${last%%;*} # a cluster's name follows where there are several
  echo "$last: ${stages[*]} ($script $options)"
}

submit afterok array.sh "--array=1-$jobs $cpu" 0 0
submit afterany array.sh "$cpu" 0 4
submit afterok train.sh "$nodes" 5 6 --device cuda
submit afterok array.sh "--array=1-$jobs $gpu" 7 7 --device cuda
submit afterany array.sh "$gpu" 7 7 --device cuda
submit afterok train.sh "$nodes" 8 9 --device cuda
submit afterok array.sh "--array=1-$jobs $gpu" 10 10 --device cuda
submit afterany array.sh "$gpu" 10 10 --device cuda
submit afterok train.sh "$nodes" 11 11 --device cuda
submit afterok array.sh "$cpu" 12 13
