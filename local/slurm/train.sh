#!/usr/bin/env bash
# Stages 5 to 11 on the GPUs of one or several nodes:
#   sbatch --nodes=2 --gpus-per-node=8 local/slurm/train.sh egs/librispeech/run.sh --corpus-dir DIR --device cuda --stage 6 --stop-stage 9
#SBATCH --job-name=train --ntasks-per-node=1 --requeue --open-mode=append --signal=B:USR1@120
set -euo pipefail
: "${1:?expected egs/CORPUS/run.sh and its options}"
source "$(dirname "$1")/../../local/slurm/requeue.sh" # Slurm runs a copy of this script from elsewhere

read -r host < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export launcher="torchrun --nnodes $SLURM_NNODES --nproc-per-node ${SLURM_GPUS_ON_NODE:-1} --rdzv-backend c10d \
--rdzv-endpoint $host:$((29500 + SLURM_JOB_ID % 1000)) --node-rank"
run_or_requeue srun bash -c 'exec "$@" --launcher "$launcher $SLURM_NODEID"' run.sh "$@"
