"""Training windows of a published dataset with `datasets` and torch alone: nothing of the package that made it is imported.

    python windows_datasets.py FOLDER        # a dataset's folder, local or downloaded from the Hub; trains a small network

A row is a text being written: where it starts, and its jumps (step, position, token). A few-step student learns from
windows (t, t + 1/n]: it sees the text at time t, and is to say which token each position that jumps within 1/n ends up with.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset

BETA = 64.0  # how much lower an energy must be to count: candidates are weighed by exp(-BETA energy)


def windows(row: dict[str, Any], manifest: dict[str, Any], n: int) -> Iterator[dict[str, torch.Tensor]]:
    """The n windows (t, t + 1/n] of a row; n divides the steps. Of L positions, those that don't jump have the target -1.

    Each is x_t [L], t, dt, target [L], and of each target its K candidates and their weights, [L, K] each.
    """
    steps, mask_id = manifest["identity"]["rollout"]["steps"], manifest["identity"]["teacher"]["mask_id"]
    length = len(row["tokens"])
    state = row["source_tokens"] or [mask_id] * length  # no source: the text starts as all [MASK]
    candidates = torch.tensor(row["event_candidates"]).reshape(len(row["event_step"]), -1)  # [E, K]
    size = candidates.shape[1]
    energy = torch.tensor(row["step_energy"], dtype=torch.float64).reshape(-1, size)  # [S, K]
    scored = dict(zip(manifest["shaped_steps"], torch.softmax(-BETA * energy, 1), strict=False))  # step -> weights
    alike = torch.full((size,), 1 / size, dtype=torch.float64)
    for window in range(n):
        x_t, target = torch.tensor(state), torch.full((length,), -1)
        chosen, weights = torch.zeros(length, size, dtype=torch.int64), torch.zeros(length, size)
        for event, step in enumerate(row["event_step"]):
            if step * n // steps == window:
                position, token = row["event_position"][event], row["event_token"][event]
                state[position] = target[position] = token  # a later jump of the same position replaces an earlier one
                chosen[position] = candidates[event]
                of_step = scored.get(step, alike)
                weights[position] = alike if of_step.isnan().any() else of_step  # NaN: all candidates were the same
        yield {"x_t": x_t, "t": torch.tensor(window / n), "dt": torch.tensor(1 / n), "target": target,
               "candidates": chosen, "weights": weights}


class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """All windows of a folder's trajectories of one arm, for any DataLoader: rows in their order, n windows each."""

    def __init__(self, folder: str, arm: str, n: int) -> None:
        self.manifest, self.n = json.loads((Path(folder) / "manifest.json").read_text()), n
        self.rows = load_dataset(folder, arm, split="train")

    def __len__(self) -> int:
        return len(self.rows) * self.n

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return list(windows(self.rows[index // self.n], self.manifest, self.n))[index % self.n]


def main(folder: str) -> None:
    """Some updates of a network that is far too small: it guesses a token by its own position's state."""
    data = Windows(folder, "shaped", 4)
    vocabulary = data.manifest["identity"]["teacher"]["vocab_size"]
    student = torch.nn.Sequential(torch.nn.Embedding(vocabulary, 32), torch.nn.Linear(32, vocabulary))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    for update, batch in enumerate(torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)):
        jumps = batch["target"] >= 0
        log_q = student(batch["x_t"])[jumps].log_softmax(-1).gather(-1, batch["candidates"][jumps])  # [jumps, K]
        loss = -(batch["weights"][jumps] * log_q).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"update {update + 1}: {len(jumps)} windows, {int(jumps.sum())} jumps, loss {loss.item():.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
