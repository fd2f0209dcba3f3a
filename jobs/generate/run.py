"""`tsdfm-pipeline generate`: plan shards, start workers, collect receipts, commit the manifest, report.

    laptop:   tsdfm-pipeline generate --out OUT
    cluster:  ray start --head (and workers), then: tsdfm-pipeline generate --out OUT --address auto

Every shard is a pure function of the config, written by its worker and renamed into place; only receipts travel. Running the
same command again keeps every sound shard and makes the rest. The manifest, written last, is the commit.
"""

import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util import ActorPool

from tsdfm.jobs.generate.worker import Receipt, as_actor
from tsdfm.jobs.shell.cluster import anchored, cluster, cores_here, gpus_at
from tsdfm.jobs.shell.console import Stages, Ticker, say, ticker
from tsdfm.jobs.shell.interrupts import Interrupted, interruptible, resume_command
from tsdfm.pipeline.dataset.manifest import Finished, ShardPlan
from tsdfm.pipeline.evaluation.figures import count
from tsdfm.pipeline.flow.generate import Work, generate_dataset
from tsdfm.schemas.base import InputError, WorkError, first_line
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.progress import Progress
from tsdfm.schemas.reports import GenerateReport

RESTARTS = 3  # of one worker, and retries of one shard: a shard that kills its worker four times is a fault, not bad luck
POLL_SECONDS = 0.5


def generate(config: GenerateConfig) -> GenerateReport:
    """Make, or go on making, the dataset of a config on Ray. Returns the report that `--json` prints.

    Raises InputError (nothing was changed) or WorkError (finished shards are kept, the same command resumes).
    """
    torch.set_num_threads(config.rollout.threads)
    config = _anchored(config)
    with ExitStack() as held, Stages() as progress:
        report = generate_dataset(config, progress=progress, maker=_OnRay(config, held))
    for path in report.unsound:
        say(f"{config.out}/{path}: was there and unsound, and has been made again")
    return report


def _anchored(config: GenerateConfig) -> GenerateConfig:
    """The config with absolute local paths of models: workers may stand in another directory."""
    names = {field: getattr(config, field) for field in ("teacher", "compass")}
    return config.model_copy(update={field: anchored(name) for field, name in names.items()})


class _OnRay:
    """Makes shards on Ray actors. Ray is connected, or started, when it is needed, and `held` lets it go."""

    def __init__(self, config: GenerateConfig, held: ExitStack) -> None:
        self.config, self.held = config, held

    def device(self) -> torch.device:
        """The device that shards are made on: a GPU if the workers will have one, else the CPU. Connects to a cluster."""
        if self.config.address != "local":
            self.held.enter_context(cluster(self.config.address, None))
        return torch.device("cuda" if gpus_at(self.config.address) else "cpu")

    def make(self, work: Work, missing: Sequence[int], progress: Progress) -> dict[int, Finished]:
        """See `Maker.make`."""
        gpus, threads = gpus_at(self.config.address), self.config.rollout.threads
        cores = _cores(self.config)
        workers = min(len(missing), self.config.workers or gpus or max(1, cores // threads))
        if self.config.address == "local":
            self.held.enter_context(cluster("local", max(cores, workers * threads)))
        uri = work.store.uri if work.store.local is None else str(work.store.local)
        actor = as_actor(threads, 1 if gpus else 0, RESTARTS)
        pool = ActorPool([actor.remote(self.config, work.identity, uri) for _ in range(workers)])
        say(f"{len(missing)} of {count(len(work.items), 'shard')} to make, "
            f"{count(workers, 'GPU worker' if gpus else 'CPU worker')}")
        return _collect(pool, work.items, missing)


def _cores(config: GenerateConfig) -> int:
    if config.address != "local" or ray.is_initialized():
        return int(ray.cluster_resources().get("CPU", 1))
    return cores_here()


def _collect(pool: ActorPool, items: list[ShardPlan], missing: Sequence[int]) -> dict[int, Finished]:
    """Keep every worker busy with one shard, until all are done or the user interrupts."""
    made: dict[int, Finished] = {}
    waiting = iter(missing)
    trajectories, started = 0, time.monotonic()
    with interruptible("finishing the shards in hand") as interrupted, ticker("making shards") as show:
        while True:
            while not interrupted and pool.has_free():
                index = next(waiting, None)
                if index is None:
                    break
                pool.submit(lambda worker, index: worker.make.remote(index, items[index]), index)
            if not pool.has_next():
                break
            receipt = _next_receipt(pool)
            if receipt is not None:
                made[receipt.index] = receipt.done
                trajectories += items[receipt.index].stop - items[receipt.index].start
            _show(show, len(made), len(missing), trajectories, started)
    if interrupted and len(made) < len(missing):
        raise Interrupted(f"stopped after {count(len(made), 'shard')}, all kept; resume with: {shlex.join(resume_command())}")
    return made


def _show(show: Ticker, made: int, missing: int, trajectories: int, started: float) -> None:
    rate = trajectories / max(1e-9, time.monotonic() - started)
    show.update(made, missing, f"{rate:.1f} trajectories/s" if trajectories else "")


def _next_receipt(pool: ActorPool) -> Receipt | None:
    """One receipt, or None if none came for a moment. Raises what the worker raised, as one line."""
    try:
        receipt: Receipt = pool.get_next_unordered(timeout=POLL_SECONDS)
    except TimeoutError:
        return None
    except RayTaskError as error:
        cause: Any = error.cause
        if isinstance(cause, InputError | WorkError):
            raise cause from None
        raise WorkError(f"a worker failed: {type(cause).__name__}: {first_line(cause, 300)}; finished shards are kept"
                        ) from None
    except RayActorError as error:
        raise WorkError(f"a worker died {RESTARTS + 1} times ({first_line(error)}); finished shards are kept; "
                        "lower rollout.batch_size if memory ran out, and run the same command to resume") from None
    except RayError as error:
        raise WorkError(f"Ray failed ({first_line(error)}); run the same command to resume") from None
    return receipt
