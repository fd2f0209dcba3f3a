"""Training windows of a published dataset with Ray Data: read on a cluster, nothing of the package that made it imported.

    pip install 'ray[data]' aiohttp          # without the last, Ray Data 2.60 may fail to list files
    python windows_ray.py FOLDER             # a dataset's folder; counts jumps over all windows

What a window is stands in windows_datasets.py; here a whole block of rows is turned into windows at a time, with numpy. For a
training loop end the pipeline in `iter_torch_batches`, or give it to a trainer of Ray Train.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray

BETA = 64.0  # how much lower an energy must be to count: candidates are weighed by exp(-BETA energy)
COLUMNS = ["arm", "trajectory_id", "tokens", "source_tokens", "event_step", "event_position", "event_token", "event_candidates",
           "step_energy"]


def read(folder: str, arm: str, n: int) -> "ray.data.Dataset":
    """All windows of a folder's trajectories of one arm, n of each: x_t, t, dt, target, candidates, weights."""
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    files = [str(Path(folder) / shard["path"]) for shard in manifest["shards"]]
    rows = ray.data.read_parquet(files, columns=COLUMNS).filter(expr=f"arm == '{arm}'")
    return rows.map_batches(windows, fn_kwargs={"manifest": manifest, "n": n}, batch_format="numpy", batch_size=64)


def windows(rows: dict[str, np.ndarray[Any, Any]], manifest: dict[str, Any], n: int) -> dict[str, np.ndarray[Any, Any]]:
    """B rows to their B * n windows (t, t + 1/n]."""
    made = [_windows({name: values[row] for name, values in rows.items()}, manifest, n) for row in range(len(rows["arm"]))]
    return {name: np.concatenate([each[name] for each in made]) for name in made[0]} if made else {}


def _windows(row: dict[str, Any], manifest: dict[str, Any], n: int) -> dict[str, np.ndarray[Any, Any]]:
    """One row to its n windows."""
    steps, mask_id = manifest["identity"]["rollout"]["steps"], manifest["identity"]["teacher"]["mask_id"]
    length, events = len(row["tokens"]), len(row["event_step"])
    step, position, token = (np.asarray(row[f"event_{name}"], np.int64) for name in ("step", "position", "token"))
    offered = np.asarray(row["event_candidates"], np.int64).reshape(events, -1)  # [E, K]
    weights = _weights(np.asarray(row["step_energy"], np.float64), step, manifest["shaped_steps"], offered.shape[1])
    source = np.full(length, mask_id) if row["source_tokens"] is None else np.asarray(row["source_tokens"], np.int64)
    x_t, target = np.tile(source, (n, 1)), np.full((n, length), -1)
    candidates, mass = (np.zeros((n, length, offered.shape[1]), kind) for kind in (np.int64, np.float32))
    window = step * n // steps  # of each event
    for j in range(n):
        before, inside = window < j, window == j
        x_t[j, position[before]] = token[before]  # numpy keeps the last of repeated assignments: the latest jump
        target[j, position[inside]] = token[inside]
        candidates[j, position[inside]] = offered[inside]
        mass[j, position[inside]] = weights[inside]
    return {"trajectory_id": np.full(n, row["trajectory_id"]), "x_t": x_t, "t": (np.arange(n) / n).astype(np.float32),
            "dt": np.full(n, 1 / n, np.float32), "target": target, "candidates": candidates, "weights": mass}


def _weights(energy: np.ndarray[Any, Any], step: np.ndarray[Any, Any], shaped: list[int], size: int) -> np.ndarray[Any, Any]:
    """softmax(-BETA energy) over the K candidates of each event, [E, K]; 1/K where its step was not scored."""
    weights = np.full((1 + max([*shaped, *step.tolist()], default=0), size), 1 / size)  # of each step, [., K]
    if energy.size:
        mass = np.exp(-BETA * (energy.reshape(-1, size) - energy.reshape(-1, size).min(1, keepdims=True)))
        weights[shaped] = np.where(np.isnan(mass).any(1, keepdims=True), 1 / size, mass / mass.sum(1, keepdims=True))
    return weights[step]


def main(folder: str) -> None:
    """How many positions jump, and how many windows there are."""
    count = jumps = 0
    for batch in read(folder, "shaped", 4).iter_torch_batches(batch_size=32):
        count, jumps = count + len(batch["t"]), jumps + int((batch["target"] >= 0).sum())
    print(f"{count} windows, {jumps} jumps")


if __name__ == "__main__":
    main(sys.argv[1])
