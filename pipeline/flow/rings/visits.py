"""Which trajectories jump together, at which of their steps, and where: all of it known before the teacher is asked.

A batch is rolled out in rounds. In the j-th round every trajectory with more than j active steps (steps at which one of its
clocks rings) takes its j-th. Rings don't depend on the model, so the sizes of all rounds are read from the device once, before
the first; within a step nothing has to be read to know what is to be computed. That matters on a GPU, which idles whenever it
is waited for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Ringing:
    """The R clocks that ring as A trajectories jump: rings [A, L] bool; owner (index into the A) and positions, [R] int64 each.

    They stand row-major over (trajectory, position).
    """

    rings: Tensor
    owner: Tensor
    positions: Tensor

    @classmethod
    def of(cls, rings: Tensor) -> "Ringing":
        """Those of rings [A, L] bool; their number is read from the device."""
        owner, positions = rings.nonzero(as_tuple=True)
        return cls(rings, owner, positions)


@dataclass(frozen=True)
class Round:
    """A trajectories of a batch that jump together: indices into the batch `rows` and their `steps`, [A] int64 each; clocks.

    `some`: of every group of steps that was named, whether some of them stand at one of it.
    """

    rows: Tensor
    steps: Tensor
    clocks: Ringing
    some: tuple[bool, ...]


def rounds(rings: Tensor, *groups: Sequence[int]) -> Iterator[Round]:
    """The rounds of a batch.

    Args:
        rings: [B, N, L] bool; at least one rings.
        groups: of steps; of each a round says whether it has some.
    """
    batch, steps, _ = rings.shape
    row, step, position = np.nonzero(rings.cpu().numpy())
    # A visit is a trajectory at one of its active steps: [V], and [E] for each ring the visit that it belongs to.
    first = np.diff(row * steps + step, prepend=-1) != 0
    visit, visit_row, visit_step = first.cumsum() - 1, row[first], step[first]
    rank = np.arange(len(visit_row)) - np.searchsorted(visit_row, np.arange(batch))[visit_row]  # the visit's round
    sizes, ringing = np.bincount(rank), np.bincount(rank[visit])
    order = np.argsort(rank, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    place -= (sizes.cumsum() - sizes)[rank]  # the visit's index among those of its round
    by_round = np.argsort(rank[visit], kind="stable")
    visits = torch.from_numpy(np.stack([visit_row[order], visit_step[order]])).to(rings.device)
    clocks = torch.from_numpy(np.stack([place[visit], position])[:, by_round]).to(rings.device)
    some = np.stack([np.bincount(rank, np.isin(visit_step, np.asarray(steps_of))) > 0 for steps_of in groups], 1)
    parts = zip(visits.split(sizes.tolist(), 1), clocks.split(ringing.tolist(), 1), some.tolist(), strict=True)
    for (rows, at), (owner, positions), there in parts:
        yield Round(rows, at, Ringing(rings[rows, at], owner, positions), tuple(there))


def places(mask: Tensor, count: int) -> Tensor:
    """Indices [count, n] int64 of the True in a mask of n dimensions, row-major, whose number is known: nothing is read."""
    return torch.nonzero_static(mask, size=count)
