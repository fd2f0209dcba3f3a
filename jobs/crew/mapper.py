"""A function of many items, computed as Ray tasks, with the results in order: `in_order`, on a cluster."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from tsdfm.jobs.shell.cluster import cluster
from tsdfm.pipeline.storage.in_order import Mapper
from tsdfm.schemas.base import InputError, WorkError, first_line

T = TypeVar("T")
R = TypeVar("R")
WAITING = 2  # tasks that are handed over for every core of the cluster
TOGETHER = 32  # items of a task, at most ...
SHARES = 8  # ... and only where there are so many tasks for each that is handed over at the same time


@contextmanager
def mapper_at(address: str) -> Iterator[Mapper]:
    """Who computes on the cluster at an address: tasks of one core each. Raises InputError if there is no such cluster."""
    with cluster(address, None):
        yield spread


def spread(function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
    """`function`, which can be pickled, of each item, on the cluster that this process is connected to.

    A few tasks a core are handed over, so memory does not grow. Where there are many items a task does several, for to hand one
    over takes longer than a small file does.

    Raises what the function raised if it is one of our errors, else WorkError: also where Ray itself fails.
    """
    task: Any = ray.remote(_apply).options(num_cpus=1)
    shared, most = ray.put(function), WAITING * max(1, int(ray.cluster_resources().get("CPU", 1)))
    given, waiting = list(items), deque[Any]()
    together = max(1, min(TOGETHER, len(given) // (SHARES * most)))
    try:
        for first in range(0, len(given), together):
            waiting.append(task.remote(shared, given[first: first + together]))
            if len(waiting) >= most:
                yield from _result(waiting.popleft())
        while waiting:
            yield from _result(waiting.popleft())
    finally:
        for each in waiting:
            ray.cancel(each)


def _apply(function: Callable[[T], R], items: list[T]) -> list[R]:
    return [function(item) for item in items]


def _result(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        cause: Any = error.cause
        if isinstance(cause, InputError | WorkError):
            raise cause from None
        raise WorkError(f"a Ray task failed ({type(cause).__name__}: {first_line(cause)})") from None
    except RayError as error:
        raise WorkError(f"Ray failed ({first_line(error)}); run the same command again") from None
