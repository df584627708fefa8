#!/usr/bin/env bash
# Train on several machines of a SLURM cluster: `sbatch [--nodes=4 …] scripts/slurm.sh [options of train.sh]`, from the
# project's folder. All machines must see it, the data and the outputs. Put your cluster's settings (partition, account,
# modules) into a copy of this file.
#
#SBATCH --job-name=atlas
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1        # one launcher per machine: it starts a process for every GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64         # for all processes of a machine and their data workers
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180        # signals this script three minutes before the time is over
#SBATCH --requeue                  # the cluster may start the job again
#SBATCH --open-mode=append         # which then continues in the same log
#SBATCH --output=slurm-%j.log
set -uo pipefail

# Two jobs may share a machine, so the port depends on the job.
port=$((10000 + SLURM_JOB_ID % 20000))

# If machines have several networks, say which one to use:
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# srun passes signals on to every launcher. After this one they finish the step, write a checkpoint and end with 143.
step=
out_of_time=false
trap 'out_of_time=true; [ -z "$step" ] || kill -USR1 "$step"' USR1

# train.sh learns from SLURM how many machines there are, which one it is on, and the first one's name. A job that is
# started again continues its own run: hence a name that belongs to the job, and --resume auto. If a machine fails, the
# launchers on the others end by themselves, after saying why.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 \
    ./train.sh --master-port "$port" --resume auto "run_name=slurm-$SLURM_JOB_ID" "$@" &
step=$!

wait "$step"
code=$?
while [ "$code" -eq $((128 + $(kill -l USR1))) ]; do # the signal has interrupted the wait
    wait "$step"
    code=$?
done

if $out_of_time && [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID" # to the end of the queue; it then resumes from the checkpoint
fi
exit "$code"
