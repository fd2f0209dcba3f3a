"""Data-parallel processes: where one stands among them, and how an update's batch is divided and its loss summed.

The loss of an update is the mean over all that counts in the whole batch, whatever the shares of the processes and the parts
that each computes one after another, so W processes take the updates of one, up to floating-point error. (Dropout is drawn by
each process and for each part: with it they agree in law only.)
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tsdfm.pipeline.models.folder import state_folder
from tsdfm.pipeline.storage.store import LocalStore
from tsdfm.pipeline.training.loop.trainer import Part, Report, Stop, never
from tsdfm.schemas.base import InputError

LOCK_SECONDS = 20.0  # to wait for the training folder: processes of a killed run may outlive it by a few
POLL_SECONDS = 0.5


class Rows(Protocol):
    """The rows of a batch, which can be cut and moved."""

    def __len__(self) -> int: ...

    def rows(self, part: slice) -> Self:
        """Those of `part`."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        ...


R = TypeVar("R", bound=Rows)


@dataclass(frozen=True)
class Place:
    """This process among the data-parallel ones, and its device."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def alone(cls) -> "Place":
        """The only process, on a GPU if there is one."""
        return cls(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def summed(self, value: Tensor) -> Tensor:
        """The sum of a small CPU tensor over all processes."""
        if self.world == 1:
            return value
        there = value.to(self.device)
        dist.all_reduce(there)
        return there.cpu()

    def mean(self, value: float) -> float:
        """The mean of a number over all processes."""
        return float(self.summed(torch.tensor([value], dtype=torch.float64))[0]) / self.world

    def any(self, value: bool) -> bool:
        """Whether it is true in any process."""
        return bool(self.summed(torch.tensor([float(value)]))[0])

    def heeding(self, stop: Stop) -> Stop:
        """A `stop` that is asked in the first process alone, and stops all of them together; to be asked by all."""
        return stop if self.world == 1 or stop is never else lambda: self.any(self.rank == 0 and stop())

    def share(self, batch: R) -> R:
        """This process's rows of a batch, as many as every other's; its size must be a multiple of their number."""
        size = len(batch) // self.world
        return batch.rows(slice(self.rank * size, (self.rank + 1) * size))


@contextmanager
def state_owned(out: Path, place: Place) -> Iterator[Path]:
    """Hold the folder of the training state of the model in `out`, and give it; the first process does, for all of them.

    A process that is about to let it go is waited for. Raises InputError if another run holds it.
    """
    folder = state_folder(out)
    with ExitStack() as stack:
        if place.rank == 0:
            stack.enter_context(_owned(LocalStore(folder)))
        yield folder


def _owned(store: LocalStore) -> AbstractContextManager[object, bool | None]:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        with ExitStack() as stack:
            try:
                stack.enter_context(store.owned())
            except InputError:
                if time.monotonic() > deadline:
                    raise
            else:
                return stack.pop_all()
        time.sleep(POLL_SECONDS)


def _sum(rows: Rows, values: Tensor) -> Tensor:
    return values.sum()


class DataParallel:
    """A module that gives the losses of rows, over all processes and in parts.

    On GPUs its forward pass runs under bfloat16 autocast; weights, gradients and the optimiser stay float32.

    Args:
        module: rows -> their losses in nats, of any shape. It must be the same in all processes.
        place: this process. With world > 1, torch.distributed must be initialised.
        micro_batches: parts that a process's share of a batch is computed in, one after another; they divide it.
    """

    def __init__(self, module: nn.Module, place: Place, micro_batches: int) -> None:
        self.module = nn.parallel.DistributedDataParallel(module) if place.world > 1 else module
        self.place, self.micro_batches = place, micro_batches

    def parts(
        self, share: R, count: float, total: Callable[[R, Tensor], Tensor] = _sum, weight: float = 1.0
    ) -> Iterator[Part]:
        """The parts of this process's share of a batch.

        Summed over parts and averaged over processes, their losses are `weight` times the sum over the whole batch divided by
        `count`.

        Args:
            share: this process's rows, on its device.
            count: how many losses count in the batch of all processes.
            total: rows and their losses to what is summed.
            weight: of this loss among others of the update.
        """
        size = len(share) // self.micro_batches

        def loss(rows: R) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16, enabled=self.place.device.type == "cuda"):
                nats: Tensor = self.module(rows)
            return weight * (total(rows, nats) * (self.place.world / max(count, 1.0)))

        for part in range(self.micro_batches):
            rows = share.rows(slice(part * size, (part + 1) * size))
            waiting = self.place.world > 1 and part < self.micro_batches - 1  # gradients are exchanged at the last part only
            sync = cast(nn.parallel.DistributedDataParallel, self.module).no_sync if waiting else nullcontext
            yield Part(partial(loss, rows), sync)

    def on_first(self, report: Report) -> Report:
        """A `report` that is called in the first process alone, and stops all of them."""
        return lambda step, scalars: self.place.any(self.place.rank == 0 and bool(report(step, scalars)))
