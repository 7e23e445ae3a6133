#!/usr/bin/env bash
# Train on several machines under SLURM, for as long as it takes. Copy this file, and set what is yours.
#
#     sbatch configs/slurm.sh configs/8b.py --name=long --parallel=shard:8
#
# Five minutes before its time is up every rank gets SIGTERM: the run saves a checkpoint at the end of the step and ends
# with status 143. The job then goes back into the queue, and the same command goes on from there, to the bit. A run that
# ends in any other way stays ended. All machines have to see the same files: this folder, the data, and runs/.
#SBATCH --job-name=pretrain
#SBATCH --nodes=6
#SBATCH --ntasks-per-node=8           # a rank for each GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300             # a step, an evaluation and a save have to fit into these seconds
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT

# Not torchrun, which kills its ranks 30 seconds after the signal
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec "${PYTHON:-python}" train.py "$@"' train.py "$@"
status=$?

if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
