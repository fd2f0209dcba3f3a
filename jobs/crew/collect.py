"""Have every piece of some work done by whoever is there: hand out, wait, count, tell. Knows nothing of Ray."""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from tsdfm.jobs.crew.pieces import Death, Pieces
from tsdfm.jobs.shell.console import Ticker, rate, ticker
from tsdfm.jobs.shell.interrupts import Interrupted, interruptible, resume_command
from tsdfm.pipeline.evaluation.figures import count
from tsdfm.schemas.base import WorkError

POLL_SECONDS = 0.5
TERM_SECONDS = 5.0  # for pieces in hand where something other than a person asks to stop: it will not wait for long
IDLE_SECONDS = 3.0  # without a worker, until it is said
T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


def nothing() -> None:
    """What is to be done where there is nothing to do."""


def one(index: int) -> int:
    """How much a piece counts where all count alike."""
    return 1


class SetAside(WorkError):
    """Pieces have cost too many workers; all others are done."""

    def __init__(self, line: str, pieces: Sequence[int]) -> None:
        super().__init__(line)
        self.pieces = list(pieces)


@dataclass(frozen=True)
class Told:
    """How a kind of work is told of, and how its workers hear that the user wishes to stop."""

    doing: str  # what the progress shows, 'making shards'
    noun: str  # of a piece, 'shard'
    name: Callable[[int], str]  # of each piece
    size: Callable[[int], int] = one  # of each piece, in `unit`
    unit: str = ""  # of the speed, 'trajectories'; '': that of pieces
    stopping: str = "finishing what is in hand"
    stop: Callable[[], None] = nothing  # asks those at work to stop; called again and again
    kept: str = "all kept"  # what becomes of what is done, where the rest is not
    cure: str = ""  # for memory that ran out, 'lower rollout.batch_size'


class Crew(Protocol[T_co]):
    """Workers, somewhere. What they make of a piece is T; None: they have stopped, as asked, before it was done."""

    def __len__(self) -> int:
        """How many pieces are handed over and not settled."""

    @property
    def at_work(self) -> int:
        """How many of those a worker has begun."""

    def most(self) -> int:
        """How many pieces to hand over at the same time."""

    def hand_over(self, index: int) -> None:
        """Have a piece done as soon as there is room."""

    def settled(self, seconds: float) -> Sequence[tuple[int, T_co | Death | None]]:
        """Pieces that are settled, after waiting a moment at most, and what became of each. May raise WorkError."""

    def call_off(self) -> None:
        """Take back what no worker has begun."""

    def waits_for(self, seconds: float) -> str:
        """What keeps workers from beginning, after so many seconds without one."""


def collect(crew: Crew[T], told: Told, missing: Sequence[int], take: Callable[[int, T], None],
            check: Callable[[], None] = nothing) -> None:
    """Have the pieces `missing` done.

    Args:
        crew: who does them.
        told: how people are told of it.
        missing: what to do.
        take: given every piece that is done, and what was made of it.
        check: raises WorkError when another run has taken over what is written.

    Raises Interrupted, WorkError (what `check` and `crew` raise), or, once all others are done, SetAside.
    """
    queue, run = Pieces(missing), _Run(told, len(missing))
    with interruptible(told.stopping) as interrupted, ticker(told.doing) as show:
        while True:
            check()
            if interrupted:
                crew.call_off()
                told.stop()
            room = 0 if interrupted else crew.most() - len(crew)
            while room > 0 and (index := queue.take()) is not None:
                crew.hand_over(index)
                room -= 1
            if not len(crew) or interrupted.is_urgent(TERM_SECONDS):
                break
            run.show(show, crew)
            for index, outcome in crew.settled(POLL_SECONDS):
                if isinstance(outcome, Death):
                    queue.died(index, outcome)
                elif outcome is not None:
                    take(index, outcome)
                    run.took(index)
        run.show(show, crew)
    if interrupted and run.done < len(missing):
        raise Interrupted(f"stopped after {count(run.done, told.noun)}, {told.kept}; resume with: "
                          f"{shlex.join(resume_command())}")
    if queue.aside:
        raise SetAside(_line(queue.aside, told), list(queue.aside))


class _Run:
    """How much was done, and how that is shown."""

    def __init__(self, told: Told, total: int) -> None:
        self.told, self.total = told, total
        self.done = self._size = 0
        self._began: float | None = None  # when a worker first was at work
        self._busy = self._made = time.monotonic()  # when one last was; when this run was made

    def took(self, index: int) -> None:
        """A piece is done. One that no worker was seen at was quick: then this run's start counts as the worker's."""
        self.done += 1
        self._began = self._began or self._made
        self._size += self.told.size(index)

    def show(self, show: Ticker, crew: Crew[object]) -> None:
        """How much so far, or what is waited for."""
        now, working = time.monotonic(), crew.at_work
        if working or not len(crew):
            self._busy, self._began = now, self._began or now
        if now - self._busy >= IDLE_SECONDS:
            show.waiting(self.done, self.total, crew.waits_for(now - self._busy))
            return
        speed = rate(self._size, now - (self._began or now), self.told.unit or f"{self.told.noun}s")
        show.update(self.done, self.total, speed if self.done else f"{working} at work" if working else "starting")


def _line(aside: dict[int, list[Death]], told: Told) -> str:
    """The pieces that are set aside, in one line."""
    index, deaths = next(iter(aside.items()))
    others = f" (and {count(len(aside) - 1, f'other {told.noun}')})" if len(aside) > 1 else ""
    where = ", ".join(dict.fromkeys(death.node for death in deaths))
    cure = f"{told.cure}, and run" if told.cure and any(death.memory for death in deaths) else "run"
    return (f"{told.name(index)}{others}: {len(deaths)} workers died making it, on {where}; the last: {deaths[-1].why}. "
            f"It is set aside, and all else is finished and kept; {cure} the same command to try it again")
