"""Work on many files at a time, with the results in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Mapper(Protocol):
    """Who computes a function of many items, with the results in order: threads, as `in_order`, or others."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        """`function` of each item, in the order of the items; what it raises is raised in its turn."""


# One a core, for reading, hashing and decoding let other threads run; and some, for a store that is far away answers slowly.
THREADS = max(8, len(os.sched_getaffinity(0)))


def in_order(function: Callable[[T], R], items: Iterable[T], threads: int = THREADS) -> Iterator[R]:
    """`function` of each item, in the order of the items, computed by threads of this process.

    At most twice as many items as threads are begun before their results are asked for, so memory does not grow with their
    number. What `function` raises is raised here, in its turn; items that were not begun are then left alone.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()
