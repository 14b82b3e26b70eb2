#!/usr/bin/env bash
# Pretraining on several machines under Slurm, which goes on after every time limit until it is done:
#   sbatch examples/accelerate/slurm.sh examples/accelerate/ddp.yaml examples/recipes/retromae.yaml \
#       --dataset texts.jsonl --output_dir runs/mine
# The arguments: a configuration of this folder, and what `retromae-hf pretrain` takes.
#SBATCH --job-name=retromae
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the limit, to this script, which passes it on.
#SBATCH --signal=B:TERM@120
set -euo pipefail

config=$1
shift
gpus=${SLURM_GPUS_ON_NODE:-8}
export MAIN_HOST=${MAIN_HOST:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
export MAIN_PORT=${MAIN_PORT:-$((20000 + SLURM_JOB_ID % 20000))}

# One task a machine, each a launcher of as many processes as there are GPUs. `exec`: signals reach the launcher.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MAIN_HOST" --main_process_port "$MAIN_PORT" "$@"' launch \
    --config_file "$config" --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * gpus)) \
    --rdzv_backend c10d -m retromae_hf.commands.pretrain "$@" &
step=$!

# srun hands the signal to the launchers, they to the processes, which have 30 seconds to save and exit. Queued again,
# the same command goes on from there.
stopped=false
trap 'stopped=true; kill -TERM "$step"' TERM
status=0
wait "$step" || status=$?
if $stopped; then
    wait "$step" || true  # the first `wait` ended with the signal
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
