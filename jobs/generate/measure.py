"""How fast trajectories are made, on the workers that a run would have: all of them at work at the same time, on Ray."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from tsdfm.jobs.crew.census import census
from tsdfm.jobs.crew.tasks import Need
from tsdfm.jobs.crew.working import node_name
from tsdfm.jobs.generate.worker import Order, check_alike
from tsdfm.jobs.plan.plan import CALIBRATE_SECONDS, Measurement
from tsdfm.jobs.plan.rates import device_name
from tsdfm.jobs.plan.rollouts import Measured, measure
from tsdfm.jobs.shell.cluster import cluster, cores_here, gpus_at
from tsdfm.jobs.shell.console import ticker
from tsdfm.pipeline.flow.opening import open_models
from tsdfm.pipeline.flow.prompts import Given
from tsdfm.schemas.base import InputError, WorkError, first_line
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.manifest import Identity
from tsdfm.schemas.plan import Machine

MOST = 256  # workers that are measured, of however many
MOST_GIVEN = 4096  # trajectories whose prompts are taken for all, which they stand for
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Told:
    """What a worker tells: where it is, what trajectories took there, and how long opening the models and all of it took."""

    node: str
    device: str
    found: Measured
    opening: float
    whole: float


def measured_there(config: GenerateConfig, identity: Identity, given: Given | None, first: int) -> Told:
    """Make a few trajectories, `first` and those after it, in this worker. Raises WorkError, which names the node."""
    began = time.monotonic()
    torch.set_num_threads(config.rollout.threads)
    device = torch.device("cuda" if identity.device == "cuda" else "cpu")
    try:
        models = open_models(config, device)
        check_alike(config, models, identity, device)
        opening = time.monotonic() - began
        found = measure(replace(models, given=given), identity, first, CALIBRATE_SECONDS)
    except (InputError, WorkError) as error:
        raise WorkError(f"node {node_name()}: {error}") from None
    return Told(node_name(), device_name(), found, opening, time.monotonic() - began)


def places(config: GenerateConfig, shards: int) -> int:
    """Workers that a run of this machine, or of the cluster that is connected, would have for so many shards."""
    gpus, threads = gpus_at(config.address), config.rollout.threads
    if config.address == "local":
        most = config.workers or gpus or max(1, cores_here() // threads)
    else:
        with census("nothing was changed") as asking:
            most = config.workers or (Need("GPU", 1) if gpus else Need("CPU", threads)).places(asking)
    return max(1, min(shards, most))


def measured(config: GenerateConfig, identity: Identity, given: Given | None, workers: int) -> Measurement:
    """Measure on so many workers at once, MOST at the most.

    Numbers: `ray` and `worker` seconds until it runs and until a worker begins, `opening` the models there, `trajectory`
    seconds a worker takes for one, `leaving` seconds until all is ended; bytes and compass tokens of a trajectory;
    `shard_bytes` of an empty shard; `share` of a trajectory's time that was measured.
    """
    workers, began = min(workers, MOST), time.monotonic()
    threads = identity.rollout.threads
    with ExitStack() as held, ticker("measuring") as show:
        show.waiting(0, workers, "starting Ray")
        cores = max(cores_here(), workers * threads) if config.address == "local" else None
        held.enter_context(cluster(config.address, cores))
        up = time.monotonic()
        task: Any = ray.remote(measured_there)
        resources = {"num_cpus": 1, "num_gpus": 1} if identity.device == "cuda" else {"num_cpus": threads}
        task = task.options(**resources, max_retries=0, scheduling_strategy="SPREAD")
        batch = min(identity.rollout.batch_size, identity.shard_size) * identity.per_text  # each begins with a whole text
        some = None if given is None else given.of_trajectories(0, min(identity.trajectories, MOST_GIVEN))
        config = Order.of(config, identity, "").config
        refs = [task.remote(config, identity, some, number * 1000 * batch) for number in range(workers)]
        ready: list[Any] = []
        while len(ready) < workers:
            show.waiting(len(ready), workers, f"{workers} at work")
            ready, _ = ray.wait(refs, num_returns=workers, timeout=POLL_SECONDS)
        told = _told(refs)
        done = time.monotonic()
        machine = _machine(told)
    left = time.monotonic()
    each = len(told) / sum(1 / worker.found.seconds_each for worker in told)
    made = sum(worker.found.trajectories for worker in told)
    return Measurement(machine, workers, {
        "ray": up - began, "worker": max(0.0, done - up - max(worker.whole for worker in told)),
        "opening": max(worker.opening for worker in told), "trajectory": each, "leaving": left - done,
        "bytes": sum(worker.found.bytes for worker in told) / made, "shard_bytes": told[0].found.shard_bytes,
        "compass_tokens": sum(worker.found.compass_tokens for worker in told) / made, "share": told[0].found.share})


def _told(refs: Sequence[Any]) -> list[Told]:
    try:
        told: list[Told] = ray.get(list(refs))
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, WorkError):
            raise cause from None
        raise WorkError(f"measuring failed: {type(error).__name__}: {first_line(error, 300)}; nothing was changed") from None
    return told


def _machine(told: Sequence[Told]) -> Machine:
    devices = sorted({worker.device for worker in told})
    return Machine(device=" and ".join(devices), cores=max(1, int(ray.cluster_resources().get("CPU", 1))),
                   nodes=len({worker.node for worker in told}))
