#!/usr/bin/env bash
# One torchrun a node; the first node of the job is where they meet. From the root of the checkout:
#   sbatch configs/cluster/slurm.sh configs/cluster/llama-7b-a100.toml \
#     --data.train '["/data/corpus"]' --tokenizer.path /data/tokenizer --run.folder /data/runs/llama-7b
# The folder of the run is one that all nodes share. A job that ends by its time limit saves first (exit code
# 3 of the ranks) and is queued again; it goes on from its newest checkpoint.
#SBATCH --job-name=megalite
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --output=%x-%j.log
set -euo pipefail

# Hosts in the file bad-hosts of the run's folder, one a line, are left out: SLURM queues the job again without them.
run=
for word in "$@"; do
  if [ "$run" = next ]; then run=$word; break; fi
  if [ "$word" = --run.folder ]; then run=next; fi
done
bad_hosts() { if [ -e "$run/bad-hosts" ]; then grep '[^ ]' "$run/bad-hosts" || true; fi; }
requeue() {
  trap '' TERM # requeueing ends this script, and only a job that is queued can be told what to leave out
  scontrol requeue "$SLURM_JOB_ID"
  if [ -n "$(bad_hosts)" ]; then
    scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=$(bad_hosts | paste -sd, -)"
  fi
}
if scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -Fxf <(bad_hosts); then
  echo "is in $run/bad-hosts: the job is queued again without it"
  requeue
  exit 0
fi

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # reads all, where head would break the pipe
export OMP_NUM_THREADS=8

srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node 8 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:29500" \
  --max-restarts 3 --shutdown-timeout 500 \
  -m megalite pretrain "$@" &
step=$!

stop_and_requeue() {
  # torchrun hands SIGTERM to its ranks, which save after the same step.
  scancel --signal=TERM "$SLURM_JOB_ID.0"
  wait "$step" || true
  requeue
}
trap stop_and_requeue USR1
wait "$step"
