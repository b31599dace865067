#!/bin/bash
# One run on the nodes of a Slurm job. From the repository's folder, which all nodes must see, with its .venv:
#
#     sbatch docs/clusters/slurm.sh /shared/experiments/mine.yaml run_dir=/shared/runs/mine
#
# The arguments are those of `python -m rl train`. The same command goes on with the run that is in run_dir, so a run
# that takes longer than --time is submitted several times: sbatch --dependency=singleton ...
#SBATCH --job-name=polygym
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gpus-per-node=8
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
source .venv/bin/activate

# Ray answers only those who have the token; srun hands both variables on.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

# This script runs on the first node, the head. Where a node has several addresses, choose one that the others reach.
ip=$(hostname --ip-address | cut -d ' ' -f 1)
address=$ip:6379
cpus=$SLURM_CPUS_PER_TASK
start=(ray start --block --disable-usage-stats --num-cpus="$cpus")
srun --nodes=1 --ntasks=1 --cpus-per-task="$cpus" --nodelist="$SLURMD_NODENAME" \
    "${start[@]}" --head --node-ip-address="$ip" --port=6379 &

wait_until() { # for some minutes; what is missing then, the run itself says
    for _ in $(seq 60); do
        if "$@"; then return; fi
        sleep 5
    done
}
head_answers() { ray health-check --address "$address" > /dev/null 2>&1; }
all_joined() { [ "$(num_nodes)" = "$SLURM_JOB_NUM_NODES" ]; }
num_nodes() {
    python -c 'import sys, ray; ray.init(sys.argv[1], log_to_driver=False); print(sum(n["Alive"] for n in ray.nodes()))' \
        "$address" 2> /dev/null || true
}

wait_until head_answers
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    others=$((SLURM_JOB_NUM_NODES - 1))
    srun --nodes="$others" --ntasks="$others" --cpus-per-task="$cpus" --exclude="$SLURMD_NODENAME" \
        "${start[@]}" --address="$address" &
    wait_until all_joined
fi

# exec: the signal that --signal sends to the batch script reaches the driver, and no process of Ray. The driver then
# writes a checkpoint and ends, and Slurm ends the rest of the job.
exec python -m rl train "$@" ray.address="$address" --resume-if-any
