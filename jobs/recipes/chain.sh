#!/usr/bin/env bash
# From text to figures, by the recipes of one size, on a Ray cluster: what slurm.sh and docker/rayjob-chain.yaml run.
#   chain.sh FOLDER [SIZE]      in FOLDER lie gpt2/tokenizer.json before, and everything else after; SIZE is 170m
# WORKERS trains on so many processes (1); ADDRESS says where Ray is (local, or auto on a running cluster). Every command
# goes on where it was cut, so the same call after a kill resumes.
set -euo pipefail
cd "${1:?give the folder to work in}"
size=${2:-170m} workers=${WORKERS:-1} where=(--address "${ADDRESS:-local}")

tsdfm-pipeline pretrain "$size/teacher-mask" --workers "$workers" "${where[@]}" --out teacher-mask
tsdfm-pipeline fit-compass "$size/compass" --workers "$workers" "${where[@]}" --out compass
tsdfm-pipeline generate "$size/generate" "${where[@]}" --out trajectories
tsdfm-pipeline verify trajectories "${where[@]}"
tsdfm-pipeline distill "$size/distill" --workers "$workers" "${where[@]}" --out student
tsdfm-pipeline evaluate "$size/evaluate" "${where[@]}" --out figures
