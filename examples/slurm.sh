#!/bin/bash
# Pre-trains on the machines of a SLURM job, saves before its time is over, and queues the job again until it is done:
#
#     sbatch examples/slurm.sh --train_dir /shared/photos --output_dir /shared/runs/photos --bf16
#
# Options are those of `hf-simmim pretrain`; images and --output_dir are on a disk that all machines see. CONFIG is
# another file of examples/accelerate_configs, such as fsdp2.yaml; numbers of machines and GPUs are those of the job.
#
#SBATCH --job-name=hf-simmim
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# A job that is preempted, or whose machine fails, is queued again by SLURM itself.
#SBATCH --requeue
# To this script alone, five minutes before the time is over.
#SBATCH --signal=B:USR1@300

set -u
config=${CONFIG:-examples/accelerate_configs/several_machines.yaml}
address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
processes=$((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-8}))

# Launchers pass SIGUSR1 on to the processes that train, and wait for their checkpoint.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=270

stopped=0
stop() {
    stopped=1
    echo "The time is nearly over: saving." >&2
    scancel --signal=USR1 "$SLURM_JOB_ID"
}
trap stop USR1

# shellcheck disable=SC2016 # SLURM_NODEID is another on each machine.
srun --kill-on-bad-exit=1 bash -c '
    exec accelerate launch --config_file "$0" --num_machines "$1" --num_processes "$2" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$3" --main_process_port "$4" -m hf_simmim pretrain "${@:5}"
' "$config" "$SLURM_NNODES" "$processes" "$address" "$port" "$@" &
training=$!

wait "$training"
status=$?
if ((stopped)); then
    # The signal ended the first wait.
    wait "$training"
    status=$?
fi
# 0: the signal came after the last step, and the run is done.
if ((stopped && status != 0)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
