#!/usr/bin/env bash
# An array of jobs that share stage 0, 1, 7 or 10; then, without --array, the call that completes the stage:
#   sbatch --array=1-40 --cpus-per-task=8 local/slurm/array.sh egs/librispeech/run.sh --corpus-dir DIR --stage 7 --stop-stage 7
#   sbatch --dependency=afterany:ID --cpus-per-task=8 local/slurm/array.sh egs/librispeech/run.sh (the same options)
#SBATCH --job-name=array --requeue --open-mode=append --signal=B:USR1@120
set -euo pipefail
: "${1:?expected egs/CORPUS/run.sh and its options}"
source "$(dirname "$1")/../../local/slurm/requeue.sh" # Slurm runs a copy of this script from elsewhere

job=()
if [[ -n ${SLURM_ARRAY_TASK_ID-} ]]; then
  step=${SLURM_ARRAY_TASK_STEP:-1}
  ((SLURM_ARRAY_TASK_MIN + step * (SLURM_ARRAY_TASK_COUNT - 1) == SLURM_ARRAY_TASK_MAX)) ||
    { echo "array.sh: the jobs are numbered by a range; give one, such as --array=1-40" >&2; exit 2; }
  job=(--job "$(((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / step + 1))/$SLURM_ARRAY_TASK_COUNT")
fi
run_or_requeue "$@" "${job[@]}"
