"""Pieces of work as Ray tasks: handed over, watched by their workers' signs of life, ended where there are none."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray import cloudpickle
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tsdfm.jobs.crew.census import QUIET_SECONDS, Census
from tsdfm.jobs.crew.pieces import Death
from tsdfm.jobs.crew.signs import Pace, Process, Sign, Signs, Watch, end_process
from tsdfm.jobs.crew.working import work
from tsdfm.jobs.shell.console import say
from tsdfm.schemas.base import InputError, WorkError, first_line

SILENT_SECONDS = 60.0  # a worker that gave no sign of life for so long is ended, and its piece done by another
SLOW_START_SECONDS = 60.0  # after which a worker that did not begin is thought to lack room, not time
T = TypeVar("T")


@dataclass(frozen=True)
class Need:
    """What a worker takes of a cluster."""

    what: str  # as Ray names it: CPU or GPU
    number: int

    def places(self, census: Census) -> int:
        """How many workers the whole cluster has room for, were it idle; at least one, for it may grow."""
        return max(1, int(census.latest.total.get(self.what, 0)) // self.number)

    def free(self, census: Census) -> int:
        """How much of it the cluster has to spare now."""
        return int(census.latest.free.get(self.what, 0))

    def lacking(self, census: Census) -> str:
        """Why no worker begins, as people may read it."""
        largest = int(census.latest.largest.get(self.what, 0))
        named = f"{self.number} {self.what}{'s' if self.number > 1 else ''}"
        small = f" and its largest node has {largest}" if largest < self.number else ""
        return f"waiting for {named}: the cluster has {self.free(census)} free{small}"


@dataclass(frozen=True)
class Call(Generic[T]):
    """What workers run for a piece.

    Args:
        name: of the task, as Ray shows it.
        function: stands at the top of a module. Its InputError and WorkError end the run, with the node named.
        arguments: of a piece, by index.
        alike: whether all pieces take about the same time, so that one that takes far longer hangs.
    """

    name: str
    function: Callable[..., T | None]
    arguments: Callable[[int], tuple[Any, ...]]
    alike: bool = False


@dataclass
class _Flight:
    """A piece that was handed to Ray."""

    index: int
    key: str  # of this attempt
    began: float | None = None  # when its worker's first sign of life was heard
    ended: float | None = None  # when its worker was ended
    why: str = ""  # it was


class Tasks(Generic[T]):
    """Pieces in the hands of Ray, a `collect.Crew`. One task does one piece.

    A task holds its CPUs or its GPU only while it runs, so none waits for what an idle one holds, and Ray gives it to any node
    that has room, also to one that joins later. To repeat is our business, not Ray's: we know whose fault a death is.
    """

    def __init__(self, call: Call[T], need: Need, workers: int | None, census: Census) -> None:
        self._call, self._need, self._workers, self._census = call, need, workers, census
        task: Any = ray.remote(work)
        actor: Any = ray.remote(Signs)
        cpus, gpus = (1, need.number) if need.what == "GPU" else (need.number, 0)
        self._task = task.options(name=call.name, num_cpus=cpus, num_gpus=gpus, max_retries=0)
        self._crowded = need.free(census) < need.number  # before anything of ours was there
        self._signs = actor.options(num_cpus=0, max_restarts=-1).remote()
        self._flights: dict[Any, _Flight] = {}
        self._watch, self._pace, self._known = Watch(), Pace(), dict[str, Sign]()
        self._workers_known: dict[Process, Sign] = {}  # that are there, at work or not
        self._gone: list[Process] = []  # that are not, since the signs were last asked
        self._endings: dict[Any, str] = {}  # of workers that were not at work, as far as was known; what is said of each
        self._asked: Any = None  # an answer of the signs that has not come yet
        self._attempts = 0

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def at_work(self) -> int:
        """How many pieces have a worker that has said so."""
        return sum(flight.key in self._known for flight in self._flights.values())

    def most(self) -> int:
        """As many as there shall be workers; else twice what there is room for, so that none waits and a cluster may grow."""
        return self._workers or 2 * self._need.places(self._census)

    def hand_over(self, index: int) -> None:
        """Let Ray do a piece as soon as there is room."""
        self._attempts += 1
        key = f"{index}/{self._attempts}"
        packed = cloudpickle.dumps((self._call.function, self._call.arguments(index)))
        ref = self._task.remote(packed, key, self._signs)
        self._flights[ref] = _Flight(index, key)

    def call_off(self) -> None:
        """Take back what no worker has begun."""
        for ref, flight in list(self._flights.items()):
            if flight.key not in self._known:
                ray.cancel(ref)
                del self._flights[ref]

    def waits_for(self, seconds: float) -> str:
        """What keeps workers from beginning, after so many seconds without one."""
        need, census = self._need, self._census
        if census.silent >= QUIET_SECONDS:
            return "waiting for the head of the cluster, which does not answer"
        room = int(census.latest.total.get(need.what, 0)) >= need.number
        if (room and not self._crowded and seconds < SLOW_START_SECONDS) or need.free(census) >= need.number:
            return "starting a worker"
        return need.lacking(census)

    def settled(self, seconds: float) -> list[tuple[int, T | Death | None]]:
        """See `Crew.settled`. Raises what a worker raised, in one line, and WorkError if Ray fails or its head is lost."""
        self._census.check()
        ready, _ = ray.wait(list(self._flights), num_returns=1, timeout=seconds)
        if ready:
            ready, _ = ray.wait(list(self._flights), num_returns=len(self._flights), timeout=0)
        found = [(flight.index, self._outcome(ref, flight)) for ref in ready if (flight := self._flights.pop(ref))]
        self._hear()
        self._tell_endings()
        return found + self._lost()

    def _outcome(self, ref: Any, flight: _Flight) -> T | Death | None:
        node = self._known[flight.key].node if flight.key in self._known else "a node unknown"
        try:
            made: T | None = ray.get(ref)
        except RayTaskError as error:
            cause: Any = error.cause
            if isinstance(cause, InputError | WorkError):
                raise cause from None
            raise WorkError(f"a worker on {node} failed: {type(cause).__name__}: {first_line(cause, 300)}; what is finished is "
                            "kept") from None
        except OutOfMemoryError as error:
            return Death(node, first_line(error), memory=True)
        except NodeDiedError:
            return Death(node, "the node was lost", node_lost=True)
        except WorkerCrashedError:
            return Death(node, flight.why or "its process ended unexpectedly")
        except RayError as error:
            raise WorkError(f"Ray failed ({first_line(error)}); run the same command to resume") from None
        now = time.monotonic()
        self._pace.took(now - (flight.began or now))  # it may be done before its first sign was heard
        return made

    def _hear(self) -> None:
        """Ask who lives; what was answered since the last time counts."""
        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            with suppress(RayError):  # the actor went with its node, and is being started on another
                self._workers_known |= {sign.process: sign for sign in ray.get(self._asked)}
            self._asked = None
        self._known |= {sign.key: sign for sign in self._workers_known.values() if sign.key}
        keys = [flight.key for flight in self._flights.values()]
        self._known = {key: self._known[key] for key in keys if key in self._known}
        for flight in self._flights.values():
            if flight.began is None and flight.key in self._known:
                flight.began = time.monotonic()
        if self._known:
            self._crowded = False
        if self._asked is None:
            self._asked, self._gone = self._signs.last.remote(self._gone), []

    def _wrong(self, now: float) -> dict[str, str]:
        """Why each worker that is silent or hangs is to be ended, by key."""
        beats, limit = {process: sign.beats for process, sign in self._workers_known.items()}, self._pace.limit()
        silent = self._watch.silent(beats, now, SILENT_SECONDS)
        why = f"it gave no sign of life for {SILENT_SECONDS:.0f} s"
        at_work = {sign.process: key for key, sign in self._known.items()}
        for process in silent:
            if process not in at_work:
                self._end_idle(self._workers_known.pop(process), why)
        wrong = {at_work[process]: why for process in silent if process in at_work}
        if limit is None or not self._call.alike:
            return wrong
        hang = [flight.key for flight in self._flights.values() if flight.began is not None and now - flight.began > limit]
        return wrong | dict.fromkeys(hang, f"it took more than {limit:.0f} s, far longer than others")

    def _lost(self) -> list[tuple[int, Death]]:
        """End workers that are silent or hang. Returns the pieces of those that can't even be ended."""
        flights, now, lost = {flight.key: (ref, flight) for ref, flight in self._flights.items()}, time.monotonic(), []
        for key, why in self._wrong(now).items():
            ref, flight = flights[key]
            if flight.ended is None:
                flight.ended, flight.why = now, f"{why} and was ended"
                say(_ended(self._known[key], why))
                self._end(self._known[key])
            elif now - flight.ended >= SILENT_SECONDS:
                del self._flights[ref]
                lost.append((flight.index, Death(self._known[key].node, f"{why}, and could not be ended")))
        return lost

    def _end_idle(self, sign: Sign, why: str) -> None:
        """End a worker that fell silent between two pieces, for Ray may have given it the next; mostly Ray ended it itself."""
        self._gone.append(sign.process)
        self._endings[self._end(sign)] = _ended(sign, why)

    def _end(self, sign: Sign) -> Any:
        """End a worker's process through its node: one that is stopped hears nothing itself. Returns Ray's word for whether."""
        task: Any = ray.remote(end_process)
        where = NodeAffinitySchedulingStrategy(sign.node_id, soft=False)
        return task.options(num_cpus=0, max_retries=0, scheduling_strategy=where).remote(sign.pid, sign.born)

    def _tell_endings(self) -> None:
        """Say which workers that were not known to be at work have been ended; those that were gone are not worth a word."""
        for ref in ray.wait(list(self._endings), num_returns=len(self._endings), timeout=0)[0] if self._endings else []:
            line = self._endings.pop(ref)
            with suppress(RayError):  # its node is gone
                if ray.get(ref):
                    say(line)


def _ended(sign: Sign, why: str) -> str:
    return f"a worker on {sign.node} is ended, and its work given to another: {why}"
