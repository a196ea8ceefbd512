#!/bin/bash
# Train on one or more nodes under SLURM, from the repository's root:
#
#   sbatch examples/slurm_train.sh trainings/my_train_cifar.py --optimizer=SAM --batch_size=1024
#   sbatch --nodes=4 --gpus-per-node=8 --time=2:00:00 examples/slurm_train.sh SCRIPT FLAGS...
#   PROCESSES=8 sbatch --gpus-per-node=0 examples/slurm_train.sh SCRIPT --device=cpu FLAGS...
#
# --batch_size is that of all processes together and must be a multiple of their number. The
# folders of --data_dir and --out_dir must be seen by all nodes; put the data there before.
#
# What ends a job doesn't end the run, as --resume is always given:
# - Two minutes before the time limit the run saves and stops, and the job is queued again.
# - Preemption sends SIGTERM, at which the run saves and stops; SLURM queues the job again.
# - After a node's failure SLURM queues the job again; no more than --save_seconds are lost.
# - When one process dies, torchrun starts all of them again from the last state, up to 3 times.
#   So it does after bad input too: the first error in the log counts.
#
#SBATCH --job-name=sam
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=outputs/slurm-%j.out
#SBATCH --signal=B:USR1@120
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: sbatch examples/slurm_train.sh SCRIPT FLAGS..." >&2
    exit 2
fi
cd "${SLURM_SUBMIT_DIR:-.}"
export PATH="$PWD/.venv/bin:$PATH"

# One task a node, which is torchrun; it starts a process for each GPU.
processes=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun doesn't take it from sbatch by itself
threads=$((SRUN_CPUS_PER_TASK / processes))
export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node must not share it

requeue=no
# The signal goes to the steps, not to this script.
trap 'requeue=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1

srun torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" \
    --nproc_per_node="$processes" \
    --rdzv_id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
    --rdzv_backend=c10d \
    --rdzv_endpoint="${nodes[0]}:$port" \
    --max_restarts=3 \
    "$@" --resume &
step=$!

code=0
wait "$step" || code=$?
if [ "$requeue" = yes ]; then # the trap cut wait short: let the run save
    wait "$step" || code=$?
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
