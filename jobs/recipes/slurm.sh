#!/usr/bin/env bash
# The whole chain on Slurm, one Ray node on each machine; from a folder that all machines see and that holds gpt2/tokenizer.json:
#   tsdfm-pipeline recipe slurm.sh > slurm.sh; tsdfm-pipeline recipe chain.sh > chain.sh; sbatch slurm.sh
# A job that is killed, or that ends at its time limit, goes on with the same line. Slurm's SIGTERM comes five minutes before
# the limit: then what is in hand is saved.
#SBATCH --job-name=tsdfm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=48:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
set -euo pipefail
folder=${SLURM_SUBMIT_DIR:-$PWD} port=6379
mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${machines[0]}
# Ray runs code for whoever reaches it: a token that only this job knows keeps others out.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
node=(--num-cpus "${SLURM_CPUS_PER_TASK:-1}" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats --block)

srun --nodes=1 --ntasks=1 -w "$head" ray start --head --node-ip-address="$head" --port="$port" "${node[@]}" &
until (: < "/dev/tcp/$head/$port") 2>/dev/null; do
  ((SECONDS < 180)) || { echo "Error: no Ray at $head:$port after three minutes; see what ray start printed" >&2; exit 1; }
  sleep 1
done
if ((${#machines[@]} > 1)); then
  srun --nodes=$((${#machines[@]} - 1)) --ntasks=$((${#machines[@]} - 1)) --exclude="$head" \
    ray start --address="$head:$port" "${node[@]}" &
fi
set -m  # the chain has a process group of its own, which the signal is passed on to
trap 'kill -TERM -- "-$chain"; wait "$chain"; exit $?' TERM
ADDRESS="$head:$port" WORKERS=$((${#machines[@]} * ${SLURM_GPUS_ON_NODE:-1})) bash "$folder/chain.sh" "$folder" &
chain=$!
wait "$chain"
