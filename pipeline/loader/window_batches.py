"""Training windows for anybody's own training loop: an IterableDataset of torch, and how its batches are put together."""

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from os import PathLike, fspath
from typing import get_args

import numpy as np
import torch
from torch.utils.data import IterableDataset

from tsdfm.pipeline.loader.batches import Reader, ReaderSettings
from tsdfm.pipeline.loader.windows import Batch, join
from tsdfm.schemas.base import InputError
from tsdfm.schemas.distill import DataConfig
from tsdfm.schemas.terms import Objective


class WindowBatches(IterableDataset[Batch]):
    """Batches of training windows (t, t + dt], one for each update; the same whatever the number of loader workers.

    Give it to `torch.utils.data.DataLoader` with `batch_size=None`; with `batch_size=n, collate_fn=WindowBatches.collate` n of
    its batches become one.
    """

    def __init__(self, reader: Reader, updates: int) -> None:
        self.reader, self.updates = reader, updates

    def __len__(self) -> int:
        return self.updates

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for update in range(first, self.updates, stride):
            yield self.reader.batch(update)

    @staticmethod
    def collate(parts: Sequence[Batch]) -> Batch:
        """Several batches of one objective as one, row after row."""
        return join(parts, np.arange(sum(len(part.t) for part in parts)))


def batches(
    data: DataConfig | str | PathLike[str] | Sequence[str | PathLike[str]], objective: Objective = "event", *,
    updates: int = 1000, batch_size: int = 32, budgets: Mapping[int, float] | None = None, seed: int = 0,
) -> WindowBatches:
    """The training windows of frozen datasets, rebuilt from their jump logs; see `windows.Batch` for what each holds.

    The batch of update s is a function of (data, objective, budgets, batch_size, seed, s), and in an epoch every row is read
    once. For a student of your own: predict `target` (where it is not -1) from `x_t`, `t` and `dt`.

    Args:
        data: a dataset or several (path of a folder, URI, or hf://datasets/USER/NAME[@REVISION]), or a whole config of what to
            read.
        objective: 'event' gives the token of the window's last jump at every position that jumps, 'endpoint' the final token,
            'candidates' the K candidates and their weights, too, the KL objectives the stored top-k.
        updates: how many batches, 0 or more.
        batch_size: windows per batch, 1 or more.
        budgets: step counts n (dt = 1/n) and how often each is drawn; None: 1, 2, 4, ..., 64 as far as they divide the steps.
        seed: of the order of rows and of the windows, 0 or more.

    Raises:
        InputError: no such dataset, datasets that can't be mixed, or that don't serve the objective or the budgets; or a
            setting out of its range.
    """
    _check(objective, updates, batch_size, budgets, seed)
    if not isinstance(data, DataConfig):
        data = DataConfig(paths=[fspath(each) for each in ([data] if isinstance(data, str | PathLike) else data)])
    reader = Reader.open(data, ReaderSettings(
        objective=objective, budgets=None if budgets is None else dict(budgets), batch_size=batch_size, seed=seed))
    return WindowBatches(reader, updates)


def _check(
    objective: Objective, updates: int, batch_size: int, budgets: Mapping[int, float] | None, seed: int
) -> None:
    if objective not in get_args(Objective):
        raise InputError(f"objective: {objective!r} is none of {', '.join(get_args(Objective))}; give one of them")
    for name, value, least in (("updates", updates, 0), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{name}: {value} is less than {least}; give {least} or more")
    if budgets is not None and not (budgets and all(n >= 1 and 0 < weight < inf for n, weight in budgets.items())):
        raise InputError(f"budgets: {dict(budgets)} are not step counts from 1 on, each with a weight above 0; give some such")
