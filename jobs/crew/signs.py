"""Signs of life: workers give them, an actor knows the last of each, and the driver ends who has fallen silent.

Light to import, for the actor and the task that ends a process need no networks.
"""

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HANG_TIMES, HANG_SECONDS, HANG_AFTER = 10, 600.0, 3  # times the longest piece so far, at least; told from so many pieces on


Process = tuple[str, int, str]  # a worker's node, its process id there, and when it began: process ids are used again


@dataclass(frozen=True)
class Sign:
    """A sign of life: where a worker is, how often it has said so, and what it is at work on."""

    node: str  # as people may read it
    node_id: str
    pid: int
    born: str  # when its process began
    beats: int
    key: str = ""  # of the attempt at a piece that it is at work on; '' between two

    @property
    def process(self) -> Process:
        """Which process gave it."""
        return self.node_id, self.pid, self.born


class Signs:
    """An actor that knows the last sign of life of every worker."""

    def __init__(self) -> None:
        self._last: dict[Process, Sign] = {}

    def beat(self, sign: Sign) -> None:
        """A worker lives."""
        self._last[sign.process] = sign

    def last(self, gone: list[Process]) -> list[Sign]:
        """The last sign of each worker; those that are `gone` are forgotten."""
        for process in gone:
            self._last.pop(process, None)
        return list(self._last.values())


class Watch:
    """When each worker last gave a sign of life, by this machine's own monotonic clock."""

    def __init__(self) -> None:
        self._seen: dict[Process, tuple[int, float]] = {}

    def silent(self, beats: Mapping[Process, int], now: float, seconds: float) -> list[Process]:
        """The workers whose count of beats has not moved for so many seconds.

        Args:
            beats: of the workers that are known now; others are forgotten.
            now: monotonic seconds.
            seconds: of silence.
        """
        self._seen = {key: seen for key, seen in self._seen.items() if key in beats}
        for key, count in beats.items():
            if key not in self._seen or self._seen[key][0] != count:
                self._seen[key] = count, now
        return [key for key, (_, since) in self._seen.items() if now - since >= seconds]


class Pace:
    """How long pieces that are alike take, which tells one that hangs while its process still gives signs of life."""

    def __init__(self) -> None:
        self._longest, self._done = 0.0, 0

    def took(self, seconds: float) -> None:
        """A piece was done in so many seconds."""
        self._longest, self._done = max(self._longest, seconds), self._done + 1

    def limit(self) -> float | None:
        """Seconds after which a piece is taken to hang; None as long as too few are done to tell."""
        return max(HANG_SECONDS, HANG_TIMES * self._longest) if self._done >= HANG_AFTER else None


def birth(pid: int) -> str:
    """When a process of this node began, in the kernel's ticks; '' if there is no such process."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    return ""


def end_process(pid: int, born: str) -> bool:
    """End a process of this node that no longer answers, if it is still the one that is meant. Returns whether it was there."""
    with suppress(OSError):
        if birth(pid) == born:
            os.kill(pid, signal.SIGKILL)
            return True
    return False
