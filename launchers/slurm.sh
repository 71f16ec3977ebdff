#!/bin/sh
#SBATCH --job-name=lpo
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=outputs/slurm/%j.log
# One run as a batch job, for those who prefer a script to hydra/launcher=slurm. From the clone:
#   mkdir -p outputs/slurm
#   sbatch --nodes=2 --gpus-per-node=8 --time=12:00:00 launchers/slurm.sh experiment=lpo_sdxl data.path=p.json hardware=ddp
#   sbatch --cpus-per-task=2 --export=ALL,NPROC=2 launchers/slurm.sh method=cpo hardware=ddp hardware.accelerator=cpu
# NPROC processes on every node: as many as it has GPUs, unless said. Two minutes before its time is up the job goes back
# into the queue and continues in its folder, outputs/slurm/<job>, from the newest checkpoint.
set -eu
cd "$SLURM_SUBMIT_DIR"
export NNODES="$SLURM_JOB_NUM_NODES" NPROC="${NPROC:-${SLURM_GPUS_ON_NODE:-1}}"
export RUN="${RUN:-outputs/slurm/$SLURM_JOB_ID}" MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 40000))}"
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
trap 'echo "slurm.sh: time is up; back into the queue" >&2; scontrol requeue "$SLURM_JOB_ID"; exit 0' USR1
srun --kill-on-bad-exit=1 sh -c 'NODE_RANK=$SLURM_NODEID exec launchers/torchrun.sh "$@"' torchrun "$@" &
wait $!
