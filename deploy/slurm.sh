#!/bin/bash
# Trains and judges on several machines of a Slurm cluster, a process for each GPU:
#
#   sbatch deploy/slurm.sh RUN.json
#
# RUN.json holds the parameters (docs/parameters.md), such as {"recipe": "isic2019", "data": "/shared/isic",
# "output": "/shared/outputs", "epochs": 35, "batch_size": 128}. Images, output folder and environment lie on a file
# system that all machines see. PATHOLIB_CACHE may name a disk of each machine: each then builds its own cache there.
# A minute before the time is up Slurm sends SIGTERM; the step is finished and saved, and the same command goes on.
#SBATCH --job-name=pathovision
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@60

set -euo pipefail

run=${1:?usage: sbatch deploy/slurm.sh RUN.json}
nodes=${SLURM_JOB_NUM_NODES:?start it with sbatch}
processes=${SLURM_GPUS_ON_NODE:?ask for GPUs with --gpus-per-node}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
endpoint=$first:$((29500 + SLURM_JOB_ID % 1000)) # two jobs on one machine must not meet
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((SLURM_CPUS_PER_TASK / processes))}

srun --kill-on-bad-exit=1 \
    torchrun --nnodes "$nodes" --nproc_per_node "$processes" --rdzv_id "$SLURM_JOB_ID" \
    --rdzv_backend c10d --rdzv_endpoint "$endpoint" -m patholib train "$run"
