"""`each_alone`: parts of a computation on CPU threads of which each computes alone, so that they wait for one another but once.

torch shares out every single operation among its threads, and waits for all of them after each. Where one of them has lost its
core to another process for a while, all wait. Parts that need nothing of each other lose only what that core does not do: a
thread that is done takes the next part.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier, Lock, Thread
from typing import TypeVar

import torch

P = TypeVar("P")
R = TypeVar("R")

_SETTING = Lock()


def each_alone(work: Callable[[P], R], parts: Sequence[P]) -> list[R]:
    """What `work` gives for each of the parts, in their order; no gradients are recorded.

    One part, or a caller with one thread of torch's, is served in the calling thread. Else as many threads as torch has there
    take the parts in turn; in them torch computes with one thread. Raises what `work` raises.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(parts) < 2:
        with torch.no_grad():
            return [work(part) for part in parts]
    return list(_pool(threads).map(work, parts))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """A pool all of whose threads have begun.

    One that begins changes, for a moment, how many threads those to come will have, and holds a lock meanwhile. Were it left
    to begin while others compute, its caller might have gone on by then: to start a thread, or to fork.
    """
    pool, begun = ThreadPoolExecutor(threads, thread_name_prefix="tsdfm-alone", initializer=_alone), Barrier(threads)
    list(pool.map(lambda _: begun.wait(), range(threads)))
    return pool


def _forget() -> None:
    """In a forked process, which inherits no threads, but locks as they were held."""
    global _SETTING
    _SETTING = Lock()
    _pool.cache_clear()


os.register_at_fork(after_in_child=_forget)


def _alone() -> None:
    """Have torch compute with one thread in this one; elsewhere, and in threads to come, with as many as before."""
    with _SETTING:
        found = torch.get_num_threads()  # in a new thread, those of threads to come
        torch.set_num_threads(1)  # of this thread, and of threads to come
        mended = Thread(target=torch.set_num_threads, args=(found,))
        mended.start()
        mended.join()
    torch.set_grad_enabled(False)
