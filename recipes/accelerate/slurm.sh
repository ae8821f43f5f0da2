#!/usr/bin/env bash
# Two nodes of eight GPUs under SLURM; preempted or out of time it saves, requeues and goes on.
#   sbatch recipes/accelerate/slurm.sh --config_path my_run.yaml --output_dir /shared/runs/one
#SBATCH --job-name=deas_vla
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
# Two minutes before the time limit, and to this script only: it tells the processes.
#SBATCH --signal=B:TERM@120
set -euo pipefail

gpus_per_node=${SLURM_GPUS_PER_NODE:-8}
MAIN_PROCESS_IP=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MAIN_PROCESS_PORT=$((20000 + SLURM_JOB_ID % 20000))
NUM_PROCESSES=$((SLURM_JOB_NUM_NODES * ${gpus_per_node##*:}))
export MAIN_PROCESS_IP MAIN_PROCESS_PORT NUM_PROCESSES

# One launcher a node; SLURM_NODEID is different on each, so it is read there.
launch='exec accelerate launch --config_file recipes/accelerate/two_nodes.yaml \
  --num_machines "$SLURM_NNODES" --num_processes "$NUM_PROCESSES" --machine_rank "$SLURM_NODEID" \
  --main_process_ip "$MAIN_PROCESS_IP" --main_process_port "$MAIN_PROCESS_PORT" \
  recipes/finetune_groot.py "$@"'
srun --kill-on-bad-exit=1 bash -c "$launch" deas_vla "$@" &
step=$!

told=
stop() {
  told=yes
  scancel --signal=TERM "$SLURM_JOB_ID.0" || true
}
trap stop TERM

# A trapped signal ends `wait` early: wait again for the step itself.
status=0
wait "$step" || status=$?
if [[ -n $told ]]; then
  wait "$step" || status=$?
  echo "told to stop; requeueing job $SLURM_JOB_ID"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
