"""Which pieces of work are still to be handed out, and which have cost too many workers to be tried again."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

WORKERS = 3  # that may die over one piece; then it is set aside, and the rest is finished
NODES = 10  # that may be lost over one piece: nodes are lost for reasons of their own, but not so often


@dataclass(frozen=True)
class Death:
    """The end of a worker that was at work on a piece."""

    node: str  # where, as people may read it
    why: str
    node_lost: bool = False  # all of the node went, not the worker alone
    memory: bool = False  # Ray says that memory ran out


class Pieces:
    """Pieces by index, in the order in which they are handed out; one whose worker died goes to the end."""

    def __init__(self, indices: Iterable[int]) -> None:
        self._waiting = deque(indices)
        self._deaths: dict[int, list[Death]] = {}

    def take(self) -> int | None:
        """The next piece to do; None if all are handed out."""
        return self._waiting.popleft() if self._waiting else None

    def died(self, index: int, death: Death) -> None:
        """The worker of a piece died. The piece waits again, unless it has cost too many."""
        self._deaths.setdefault(index, []).append(death)
        if not self._too_many(index):
            self._waiting.append(index)

    def _too_many(self, index: int) -> bool:
        lost = sum(death.node_lost for death in self._deaths[index])
        return len(self._deaths[index]) - lost >= WORKERS or lost >= NODES

    @property
    def aside(self) -> dict[int, list[Death]]:
        """The pieces that are set aside, and how their workers died."""
        return {index: deaths for index, deaths in sorted(self._deaths.items()) if self._too_many(index)}
