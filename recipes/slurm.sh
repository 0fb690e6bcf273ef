#!/bin/bash
# One training run on many nodes: sbatch recipes/slurm.sh [PARAMS] [OUTPUT] [--set ...], from the repository's root.
# A job that is preempted, loses a node or meets its time limit is queued again, and goes on from its last checkpoint.

#SBATCH --job-name=svite
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1   # one torchrun a node, which starts one process a GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96    # twelve a GPU: images are decoded there
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue             # after preemption, and after a node's failure
#SBATCH --signal=B:TERM@120   # two minutes before the time limit, to this shell
#SBATCH --open-mode=append    # one log, however often the job is queued again
#SBATCH --output=slurm-%j.log

set -euo pipefail
params=${1:-recipes/deit_base_imagenet.yaml}
output=${2:-runs/$(basename "$params" .yaml)}
# shellcheck source=/dev/null
[ ! -e .venv/bin/activate ] || . .venv/bin/activate

export OMP_NUM_THREADS=1                      # the loaders' processes fill the cores; more threads would take turns
export PYTHONUNBUFFERED=1                     # progress reaches the log while it is news
export NCCL_DEBUG=WARN                        # which rank and which link, where there is trouble
# export NCCL_SOCKET_IFNAME=ib0               # where nodes have several networks and NCCL takes the slow one
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100     # seconds that torchrun leaves its processes to save in; 30 otherwise
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1   # with torchrun's own, a restart may hang (torch 2.13)

read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs on a node must not meet
launch=(
    torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="$SLURM_GPUS_ON_NODE"
    --rdzv-backend=c10d --rdzv-endpoint="$first:$port" --rdzv-id="$SLURM_JOB_ID"
    --max-restarts=2 # a process that dies: all start again, from the checkpoint
)

# Slurm asks this shell to end; srun passes it on to each torchrun, torchrun to its processes, and they save.
asked=
trap 'asked=yes; kill -TERM "$step"' TERM

# sbatch's --cpus-per-task does not reach srun (since Slurm 22.05): one core would decode for eight GPUs.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    "${launch[@]}" -m svite train --params "$params" --output "$output" "${@:3}" &
step=$!

code=0
wait "$step" || code=$?
if [ -n "$asked" ]; then # the trap has cut that wait short
    code=0
    wait "$step" || code=$?
fi
if [ -n "$asked" ] && [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
