"""`tsdfm-pipeline generate`: plan shards, have Ray make them, collect receipts, commit the manifest, report.

    laptop:   tsdfm-pipeline generate --out OUT
    cluster:  ray start --head (and workers), then: tsdfm-pipeline generate --out OUT --address auto

Every shard is a pure function of the config, written by its worker and renamed into place; only receipts travel. Running the
same command again keeps every sound shard and makes the rest. The manifest, written last, is the commit.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tsdfm.jobs.generate.collect import Receipt, collect
from tsdfm.jobs.generate.shard_queue import Death
from tsdfm.jobs.generate.signs import Sign, Signs, Watch, end_process
from tsdfm.jobs.generate.worker import Order, make
from tsdfm.jobs.shell.cluster import anchored, cluster, cores_here, gpus_at
from tsdfm.jobs.shell.console import Stages, say, say_if_slow
from tsdfm.pipeline.dataset.manifest import Finished, ShardPlan
from tsdfm.pipeline.evaluation.figures import count
from tsdfm.pipeline.flow.generate import Work, generate_dataset
from tsdfm.schemas.base import InputError, WorkError, first_line
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.progress import Progress
from tsdfm.schemas.reports import GenerateReport

SILENT_SECONDS = 60.0  # a worker that gave no sign of life for so long is ended, and its shard made by another
SLOW_START_SECONDS = 60.0  # after which a worker that did not begin is thought to lack room, not time


def generate(config: GenerateConfig) -> GenerateReport:
    """Make, or go on making, the dataset of a config on Ray. Returns the report that `--json` prints.

    Raises InputError (nothing was changed) or WorkError (finished shards are kept, the same command resumes).
    """
    torch.set_num_threads(config.rollout.threads)
    config = anchored_models(config)
    with ExitStack() as held, Stages() as progress:
        report = generate_dataset(config, progress=progress, maker=_OnRay(config, held))
    for path in report.unsound:
        say(f"{config.out}/{path}: was there and unsound, and has been made again")
    return report


def anchored_models(config: GenerateConfig) -> GenerateConfig:
    """The config with absolute local paths of models: workers may stand in another directory."""
    names = {field: getattr(config, field) for field in ("teacher", "compass")}
    return config.model_copy(update={field: anchored(name) for field, name in names.items()})


class _OnRay:
    """Makes shards on Ray. Ray is connected, or started, when it is needed, and `held` lets it go."""

    def __init__(self, config: GenerateConfig, held: ExitStack) -> None:
        self.config, self.held = config, held

    def device(self) -> torch.device:
        """The device that shards are made on: a GPU if the workers will have one, else the CPU. Connects to a cluster."""
        if self.config.address != "local":
            self.held.enter_context(cluster(self.config.address, None))
        device = torch.device("cuda" if gpus_at(self.config.address) else "cpu")
        say_if_slow(self.config.rollout.dtype, device.type == "cuda")
        return device

    def make(self, work: Work, missing: Sequence[int], progress: Progress) -> dict[int, Finished]:
        """See `Maker.make`."""
        gpus, threads = gpus_at(self.config.address), self.config.rollout.threads
        if self.config.address == "local":
            cores = cores_here()
            wanted = min(len(missing), self.config.workers or gpus or max(1, cores // threads))
            self.held.enter_context(cluster("local", max(cores, wanted * threads)))
        need = Need("GPU", 1) if gpus else Need("CPU", threads)
        workers = min(len(missing), self.config.workers or need.places())
        say(f"{len(missing)} of {count(len(work.items), 'shard')} to make, {count(workers, f'{need.what} worker')}")
        crew = Tasks(Order(self.config, work.identity, work.store.address), work.items, need, self.config.workers)
        return collect(crew, work.items, missing, work.check)


@dataclass(frozen=True)
class Need:
    """What a worker takes of a cluster."""

    what: str  # as Ray names it: CPU or GPU
    number: int

    def places(self) -> int:
        """How many workers the whole cluster has room for, were it idle; at least one, for it may grow."""
        return max(1, int(ray.cluster_resources().get(self.what, 0)) // self.number)

    def free(self) -> int:
        """How much of it the cluster has to spare now."""
        return int(ray.available_resources().get(self.what, 0))

    def lacking(self) -> str:
        """Why no worker begins, as people may read it."""
        largest = max([int(node["Resources"].get(self.what, 0)) for node in ray.nodes() if node["Alive"]], default=0)
        named = f"{self.number} {self.what}{'s' if self.number > 1 else ''}"
        small = f" and its largest node has {largest}" if largest < self.number else ""
        return f"waiting for {named}: the cluster has {self.free()} free{small}"


@dataclass
class _Flight:
    """A shard that was handed to Ray."""

    index: int
    key: str  # of this attempt
    ended: float | None = None  # when its worker was ended, for it had fallen silent


class Tasks:
    """Shards in the hands of Ray, a `collect.Crew`: handed over, watched, and what became of them. One task makes one shard.

    A task holds its CPUs or its GPU only while it runs, so none waits for what an idle one holds, and Ray gives it to any node
    that has room, also to one that joins later. To repeat is our business, not Ray's: we know whose fault a death is.
    """

    def __init__(self, order: Order, items: Sequence[ShardPlan], need: Need, workers: int | None) -> None:
        self._order, self._items, self._need, self._workers = order, items, need, workers
        task: Any = ray.remote(make)
        actor: Any = ray.remote(Signs)
        cpus, gpus = (1, need.number) if need.what == "GPU" else (need.number, 0)
        self._task = task.options(name="ShardWorker.make", num_cpus=cpus, num_gpus=gpus, max_retries=0)
        self._crowded = need.free() < need.number  # before anything of ours was there
        self._signs = actor.options(num_cpus=0, max_restarts=-1).remote()
        self._flights: dict[Any, _Flight] = {}
        self._watch, self._known = Watch(), dict[str, Sign]()
        self._asked: Any = None  # an answer of the signs that has not come yet
        self._attempts = 0

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def at_work(self) -> int:
        """How many shards have a worker that has said so."""
        return sum(flight.key in self._known for flight in self._flights.values())

    def most(self) -> int:
        """As many as there shall be workers; else twice what there is room for, so that none waits and a cluster may grow."""
        return self._workers or 2 * self._need.places()

    def hand_over(self, index: int) -> None:
        """Let Ray make a shard as soon as there is room."""
        self._attempts += 1
        key = f"{index}/{self._attempts}"
        ref = self._task.remote(self._order, index, self._items[index], key, self._signs)
        self._flights[ref] = _Flight(index, key)

    def call_off(self) -> None:
        """Take back what no worker has begun."""
        for ref, flight in list(self._flights.items()):
            if flight.key not in self._known:
                ray.cancel(ref)
                del self._flights[ref]

    def waits_for(self, seconds: float) -> str:
        """What keeps workers from beginning, after so many seconds without one."""
        room = int(ray.cluster_resources().get(self._need.what, 0)) >= self._need.number
        if (room and not self._crowded and seconds < SLOW_START_SECONDS) or self._need.free() >= self._need.number:
            return "starting a worker"
        return self._need.lacking()

    def settled(self, seconds: float) -> list[tuple[int, Receipt | Death]]:
        """See `Crew.settled`. Raises what a worker raised, as one line, and WorkError if Ray itself fails."""
        ready, _ = ray.wait(list(self._flights), num_returns=1, timeout=seconds)
        if ready:
            ready, _ = ray.wait(list(self._flights), num_returns=len(self._flights), timeout=0)
        found = [(flight.index, self._outcome(ref, flight)) for ref in ready if (flight := self._flights.pop(ref))]
        self._hear()
        return found + self._lost()

    def _outcome(self, ref: Any, flight: _Flight) -> Receipt | Death:
        node = self._known[flight.key].node if flight.key in self._known else "a node unknown"
        try:
            receipt: Receipt = ray.get(ref)
        except RayTaskError as error:
            cause: Any = error.cause
            if isinstance(cause, InputError | WorkError):
                raise cause from None
            raise WorkError(f"a worker on {node} failed: {type(cause).__name__}: {first_line(cause, 300)}; finished shards are "
                            "kept") from None
        except OutOfMemoryError as error:
            return Death(node, first_line(error), memory=True)
        except NodeDiedError:
            return Death(node, "the node was lost", node_lost=True)
        except WorkerCrashedError:
            silent = f"it gave no sign of life for {SILENT_SECONDS:.0f} s and was ended"
            return Death(node, silent if flight.ended is not None else "its process ended unexpectedly")
        except RayError as error:
            raise WorkError(f"Ray failed ({first_line(error)}); run the same command to resume") from None
        return receipt

    def _hear(self) -> None:
        """Ask who lives; what was answered since the last time counts."""
        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            with suppress(RayError):  # the actor went with its node, and is being started on another
                self._known |= ray.get(self._asked)
            self._asked = None
        keys = [flight.key for flight in self._flights.values()]
        self._known = {key: self._known[key] for key in keys if key in self._known}
        if self._known:
            self._crowded = False
        if self._asked is None:
            self._asked = self._signs.last.remote(keys)

    def _lost(self) -> list[tuple[int, Death]]:
        """End workers that have been silent for long. Returns the shards of those that can't even be ended."""
        flights = {flight.key: (ref, flight) for ref, flight in self._flights.items()}
        beats, now = {key: sign.beats for key, sign in self._known.items()}, time.monotonic()
        lost = []
        for key in self._watch.silent(beats, now, SILENT_SECONDS):
            ref, flight = flights[key]
            if flight.ended is None:
                flight.ended = now
                self._end(self._known[key])
            elif now - flight.ended >= SILENT_SECONDS:
                del self._flights[ref]
                lost.append((flight.index, Death(self._known[key].node, "it gave no sign of life, and could not be ended")))
        return lost

    def _end(self, sign: Sign) -> None:
        """End a worker's process through its node: one that is stopped hears nothing itself."""
        say(f"a worker on {sign.node} gave no sign of life for {SILENT_SECONDS:.0f} s: it is ended, another makes its shard")
        task: Any = ray.remote(end_process)
        where = NodeAffinitySchedulingStrategy(sign.node_id, soft=False)
        task.options(num_cpus=0, max_retries=0, scheduling_strategy=where).remote(sign.pid, sign.born)
