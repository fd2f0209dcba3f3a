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


@contextmanager
def mapper_at(address: str) -> Iterator[Mapper]:
    """Who computes on the cluster at an address: tasks of one core each. Raises InputError if there is no such cluster."""
    with cluster(address, None):
        yield _spread


def _spread(function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
    """`function`, which can be pickled, of each item. A few tasks a core are handed over: memory does not grow.

    Raises what the function raised if it is one of our errors, else WorkError: also where Ray itself fails.
    """
    task: Any = ray.remote(_apply).options(num_cpus=1)
    shared, most = ray.put(function), WAITING * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[Any] = deque()
    try:
        for item in items:
            waiting.append(task.remote(shared, item))
            if len(waiting) >= most:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        for each in waiting:
            ray.cancel(each)


def _apply(function: Callable[[T], R], item: T) -> R:
    return function(item)


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
