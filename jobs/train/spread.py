"""Tokenise a corpus on the nodes of a Ray cluster: a task for each piece of the text."""

import os
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from tsdfm.pipeline.text.token_file import TokenJob, one_by_one
from tsdfm.schemas.base import InputError, WorkError

AT_ONCE = 256  # tasks that were given to Ray and are not done
POLL_SECONDS = 0.5

Answer = tuple[int, InputError | WorkError | None]  # tokens; what is wrong with the text, the tokenizer or the disk


def on_ray(job: TokenJob, numbers: Sequence[int]) -> Generator[tuple[int, int], None, None]:
    """Who tokenises: tasks of the cluster that this process is connected to. See `Spread`.

    A piece that a task could not make, since its node does not see the folder or died, is made here.
    """
    task = ray.remote(num_cpus=1, max_retries=1)(_piece)
    sent = ray.put(job)
    left, running, here = deque(numbers), dict[Any, int](), list[int]()
    try:
        while left or running:
            while left and len(running) < AT_ONCE:
                number = left.popleft()
                running[task.remote(sent, number)] = number
            done, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            for each in done:
                number, tokens = running.pop(each), _answer(each)
                if tokens is not None and job.file(number).exists():
                    yield 1, tokens
                else:
                    here.append(number)
            yield 0, 0
    finally:
        for each in running:
            ray.cancel(each, force=True)
    yield from one_by_one(job, here)


def _answer(task: Any) -> int | None:
    """How many tokens a task made; None if it made none. Raises InputError or WorkError."""
    try:
        tokens, fault = ray.get(task)
    except (RayError, OSError):
        return None
    if fault is not None:
        raise fault
    return int(tokens)


def _piece(job: TokenJob, number: int) -> Answer:
    """What a task does. Raises OSError where it can't read or write there."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # of a process of ours: a task has one core
    try:
        return sum(job.write(number)), None
    except (InputError, WorkError) as fault:
        return 0, fault
