"""Have every shard made by whoever is there: hand out, wait, count, and say what is waited for. Knows nothing of Ray."""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tsdfm.jobs.generate.shard_queue import Death, ShardQueue
from tsdfm.jobs.shell.console import Ticker, rate, ticker
from tsdfm.jobs.shell.interrupts import Interrupted, interruptible, resume_command
from tsdfm.pipeline.dataset.manifest import Finished, ShardPlan
from tsdfm.pipeline.evaluation.figures import count
from tsdfm.schemas.base import WorkError

POLL_SECONDS = 0.5
TERM_SECONDS = 5.0  # for shards in hand where something other than a person asks to stop: it will not wait for long
IDLE_SECONDS = 3.0  # without a worker, until it is said


@dataclass(frozen=True)
class Receipt:
    """All that travels back from a worker: which shard, what the manifest needs, and how long it took."""

    index: int
    done: Finished
    seconds: float


class Crew(Protocol):
    """Workers, somewhere."""

    def __len__(self) -> int:
        """How many shards are handed over and not settled."""

    @property
    def at_work(self) -> int:
        """How many of those a worker has begun."""

    def most(self) -> int:
        """How many shards to hand over at the same time."""

    def hand_over(self, index: int) -> None:
        """Have a shard made as soon as there is room."""

    def settled(self, seconds: float) -> list[tuple[int, Receipt | Death]]:
        """Shards that are settled, after waiting a moment at most, and what became of each. May raise WorkError."""

    def call_off(self) -> None:
        """Take back what no worker has begun."""

    def waits_for(self, seconds: float) -> str:
        """What keeps workers from beginning, after so many seconds without one."""


def collect(crew: Crew, items: Sequence[ShardPlan], missing: Sequence[int], check: Callable[[], None]) -> dict[int, Finished]:
    """Have the shards `missing`, indices into `items`, made.

    Args:
        crew: who makes them.
        items: the plan of the dataset.
        missing: what to make.
        check: raises WorkError when another run has taken the dataset over.

    Raises Interrupted, or WorkError: what `check` and `crew` raise, or, once all others are made, the shards set aside.
    """
    queue, run = ShardQueue(missing), _Run(items, len(missing))
    with interruptible("finishing the shards in hand") as interrupted, ticker("making shards") as show:
        while True:
            check()
            if interrupted:
                crew.call_off()
            while not interrupted and len(crew) < crew.most() and (index := queue.take()) is not None:
                crew.hand_over(index)
            if not len(crew) or interrupted.is_urgent(TERM_SECONDS):
                break
            run.show(show, crew)
            for index, outcome in crew.settled(POLL_SECONDS):
                if isinstance(outcome, Death):
                    queue.died(index, outcome)
                else:
                    run.made[index] = outcome.done
        run.show(show, crew)
    if interrupted and len(run.made) < len(missing):
        raise Interrupted(f"stopped after {count(len(run.made), 'shard')}, all kept; resume with: "
                          f"{shlex.join(resume_command())}")
    if queue.aside:
        raise WorkError(_told(queue.aside, items))
    return run.made


class _Run:
    """What was made, and how that is shown."""

    def __init__(self, items: Sequence[ShardPlan], total: int) -> None:
        self.items, self.total = items, total
        self.made: dict[int, Finished] = {}
        self._began: float | None = None  # when a worker first was at work
        self._busy = time.monotonic()  # when one last was

    def show(self, show: Ticker, crew: Crew) -> None:
        """Shards and trajectories so far, or what is waited for."""
        now, working = time.monotonic(), crew.at_work
        if working or not len(crew):
            self._busy, self._began = now, self._began or now
        if now - self._busy >= IDLE_SECONDS:
            show.waiting(len(self.made), self.total, crew.waits_for(now - self._busy))
            return
        trajectories = sum(self.items[index].stop - self.items[index].start for index in self.made)
        speed = rate(trajectories, now - (self._began or now), "trajectories")
        show.update(len(self.made), self.total, speed if trajectories else f"{working} at work" if working else "starting")


def _told(aside: dict[int, list[Death]], items: Sequence[ShardPlan]) -> str:
    """The shards that are set aside, in one line."""
    index, deaths = next(iter(aside.items()))
    others = f" (and {count(len(aside) - 1, 'other shard')})" if len(aside) > 1 else ""
    where = ", ".join(dict.fromkeys(death.node for death in deaths))
    cure = "lower rollout.batch_size, and run" if any(death.memory for death in deaths) else "run"
    return (f"{items[index].path}{others}: {len(deaths)} workers died making it, on {where}; the last: {deaths[-1].why}. "
            f"It is set aside, and all else is finished and kept; {cure} the same command to try it again")
