"""What a cluster has, as its head last said; and whether the head still answers."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import ray

from tsdfm.schemas.base import WorkError

ASK_SECONDS = 1.0
QUIET_SECONDS = 5.0  # without an answer of the head, until it is said
HEAD_SECONDS = 20.0  # without an answer of the head, until it counts as lost


@dataclass(frozen=True)
class Count:
    """What the nodes of a cluster have, by Ray's names: CPU, GPU, ..."""

    total: dict[str, float] = field(default_factory=dict)
    free: dict[str, float] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)  # of any one node


class Census:
    """Asks the head every second, in a thread of its own: who asks a head that is lost waits for a minute, and hears no signal.

    Args:
        kept: what people may count on when the head is lost, 'finished shards are kept'.
    """

    def __init__(self, kept: str) -> None:
        self._kept = kept
        self._leaving = threading.Event()
        self.latest = _asked()
        self._answered = time.monotonic()
        threading.Thread(target=self._keep, daemon=True).start()

    def _keep(self) -> None:
        while not self._leaving.wait(ASK_SECONDS):
            with suppress(Exception):  # Ray's errors here have no common kind; none of them is an answer
                self.latest = _asked()
                self._answered = time.monotonic()

    def leave(self) -> None:
        """Ask no more."""
        self._leaving.set()

    @property
    def silent(self) -> float:
        """Seconds since the head last answered."""
        return time.monotonic() - self._answered

    def check(self) -> None:
        """Raise WorkError where the head has not answered for long: it was killed, stopped, or can't be reached."""
        if self.silent >= HEAD_SECONDS:
            raise WorkError(f"the head of the Ray cluster has not answered for {self.silent:.0f} s: it has ended, or can't be "
                            f"reached; {self._kept}. When a head runs again, the same command resumes")


@contextmanager
def census(kept: str) -> Iterator[Census]:
    """A census for the time of a job; see `Census`."""
    asking = Census(kept)
    try:
        yield asking
    finally:
        asking.leave()


def _asked() -> Count:
    largest: dict[str, float] = {}
    for node in ray.nodes():
        if node["Alive"]:
            for what, number in node["Resources"].items():
                largest[what] = max(largest.get(what, 0), number)
    return Count(ray.cluster_resources(), ray.available_resources(), largest)
