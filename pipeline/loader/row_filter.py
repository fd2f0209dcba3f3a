"""Which rows of a dataset are read, and how much the loss of each counts, by the final energy of its trajectory.

The energies are one column of every shard; they are read once, when the dataset is opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tsdfm.pipeline.dataset import shards
from tsdfm.schemas.base import InputError
from tsdfm.schemas.terms import Arm

Energies = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)  # arrays have no truth value: equal means the same object
class RowFilter:
    """Of each shard, the n rows that are read: their indices [n] among the rows of the arm, rising, and their weights [n]."""

    rows: list[npt.NDArray[np.int64]]
    weights: list[npt.NDArray[np.float32]] | None  # 1 on average over all shards; None: all alike

    def of_shards(self, shards: Sequence[int]) -> "RowFilter":
        """The filter of the shards of these indices alone, in that order."""
        weights = None if self.weights is None else [self.weights[shard] for shard in shards]
        return RowFilter([self.rows[shard] for shard in shards], weights)


def energies_of(file: pa.NativeFile, where: str, arm: Arm) -> Energies:
    """The final energies of the arm's rows of one file, nats/token, in order. Raises InputError: there are none."""
    with shards.readable(where):
        tables = [table.filter(pc.field("arm") == arm) for table in shards.some_columns(file, where, ["arm", "final_energy"])]
        energies = np.concatenate([np.asarray(table.column("final_energy").to_numpy(), np.float64) for table in tables])
    if not np.isfinite(energies).all():
        raise InputError(f"{where}: a row has no final energy, or one that is not finite; run verify to list all faults, and "
                         "generate to remake the shard")
    return energies


def filter_by_energy(energies: Sequence[Energies], best: float, beta: float) -> RowFilter:
    """The rows of the lowest energies over all shards, and their weights

        w_i = exp(-beta (E_i - min E)) / mean_j exp(-beta (E_j - min E)).

    Args:
        energies: of each shard, [n], in the order of trajectory ids.
        best: the fraction to keep, in (0, 1]: round(best * rows), at least one. Of equal energies the lower id is kept.
        beta: at least 0, per nat/token; 0: no weights. The mean is over the rows that are kept.
    """
    flat = np.concatenate(energies)
    number = max(1, round(best * len(flat)))
    keep = np.zeros(len(flat), dtype=bool)
    keep[np.argsort(flat, kind="stable")[:number]] = True
    bounds = np.cumsum([len(each) for each in energies])[:-1]
    rows = [np.flatnonzero(part) for part in np.split(keep, bounds)]
    if not beta:
        return RowFilter(rows, None)
    mass = np.where(keep, np.exp(-beta * (flat - flat.min())), 0.0)
    weights = (mass * (number / mass.sum())).astype(np.float32)
    return RowFilter(rows, [part[kept] for part, kept in zip(np.split(weights, bounds), rows, strict=True)])
