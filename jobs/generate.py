"""`tsdfm-pipeline generate`: plan shards, start workers, collect receipts, commit the manifest, report.

    laptop:   tsdfm-pipeline generate --out OUT
    cluster:  ray start --head (and workers), then: tsdfm-pipeline generate --out OUT --address auto

Every shard is a pure function of the config, written by its worker and renamed into place; only receipts travel. Running the
same command again keeps every sound shard and makes the rest. The manifest, written last, is the commit.
"""

import shlex
import time
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util import ActorPool

from tsdfm.jobs.cluster import connect
from tsdfm.jobs.console import Ticker, people, ticker
from tsdfm.jobs.interrupts import Interrupted, interruptible, resume_command
from tsdfm.jobs.worker import Receipt, as_actor
from tsdfm.pipeline.dataset import Finished, ShardPlan, claim, commit, existing_shard, plan
from tsdfm.pipeline.models import identity_of, open_models
from tsdfm.pipeline.storage import Store
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.manifest import DatasetManifest, Identity

RESTARTS = 3  # of one worker, and retries of one shard: a shard that kills its worker four times is a fault, not bad luck
POLL_SECONDS = 0.5


def generate(config: GenerateConfig) -> dict[str, object]:
    """Make, or go on making, the dataset of a config. Returns the report that `--json` prints.

    Raises InputError (nothing was changed) or WorkError (finished shards are kept, the same command resumes).
    """
    if config.out is None:
        raise InputError("--out: no folder for the dataset; give --out OUT, or 'out' in the config")
    try:
        return _generate(config, config.out)
    finally:
        ray.shutdown()


def _generate(config: GenerateConfig, out: str) -> dict[str, object]:
    started = time.monotonic()
    store = Store(out)
    torch.set_num_threads(config.rollout.threads)
    models = open_models(config, torch.device("cpu"))
    if config.address != "local":
        connect(config.address, None)
    device = torch.device("cuda" if _gpus(config) else "cpu")
    identity = identity_of(config, models, device)
    with store.owned():
        claim(store, identity)
        items = plan(identity)
        kept = _keep(store, identity, items)
        missing = [index for index in range(len(items)) if index not in kept]
        made = _make(config, identity, store, items, missing) if missing else {}
        done = [(kept | made)[index] for index in range(len(items))]
        teacher = config.teacher if config.teacher == "embedded" else str(models.checkpoint.path.absolute())
        manifest = commit(store, identity, done, models.checkpoint.vocabulary, teacher)
    return _report(manifest, out, len(kept), len(made), time.monotonic() - started)


def _gpus(config: GenerateConfig) -> int:
    """GPUs the workers may use: the cluster's, or this machine's."""
    if config.address == "local":
        return torch.cuda.device_count()
    return int(ray.cluster_resources().get("GPU", 0))


def _keep(store: Store, identity: Identity, items: list[ShardPlan]) -> dict[int, Finished]:
    """Verify what an earlier run finished; faulty or foreign shards are made again."""
    present = set(store.names("data"))
    kept: dict[int, Finished] = {}
    candidates = [i for i, item in enumerate(items) if item.path.removeprefix("data/") in present]
    if not candidates:
        return kept
    with ticker("checking shards", len(candidates)) as show:
        for count, index in enumerate(candidates, 1):
            shard = existing_shard(store, items[index], identity)
            if shard is None:
                people.print(f"{items[index].path}: unsound, will be made again", markup=False)
            else:
                kept[index] = shard
            show.update(count)
    return kept


def _make(
    config: GenerateConfig, identity: Identity, store: Store, items: list[ShardPlan], missing: list[int]
) -> dict[int, Finished]:
    """Make the missing shards on Ray actors."""
    gpus, threads = _gpus(config), config.rollout.threads
    cores = _cores(config)
    workers = min(len(missing), config.workers or gpus or max(1, cores // threads))
    if config.address == "local":
        connect("local", max(cores, workers * threads))
    uri = store.uri if store.local is None else str(store.local)
    actor = as_actor(threads, 1 if gpus else 0, RESTARTS)
    pool = ActorPool([actor.remote(config, identity, uri) for _ in range(workers)])
    kind = "GPU" if gpus else "CPU"
    people.print(f"{len(missing)} of {len(items)} shards to make, {workers} {kind} workers", markup=False)
    return _collect(pool, items, missing)


def _cores(config: GenerateConfig) -> int:
    if config.address != "local":
        return int(ray.cluster_resources().get("CPU", 1))
    from os import sched_getaffinity

    return len(sched_getaffinity(0))


def _collect(pool: ActorPool, items: list[ShardPlan], missing: list[int]) -> dict[int, Finished]:
    """Keep every worker busy with one shard, until all are done or the user interrupts."""
    made: dict[int, Finished] = {}
    waiting = iter(missing)
    trajectories, started = 0, time.monotonic()
    with interruptible("finishing the shards in hand") as interrupted, ticker("shards", len(missing)) as show:
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
            _show(show, len(made), trajectories, started)
    if interrupted and len(made) < len(missing):
        raise Interrupted(f"stopped after {len(made)} shards, all kept; resume with: {shlex.join(resume_command())}")
    return made


def _show(show: Ticker, made: int, trajectories: int, started: float) -> None:
    show.update(made, f"{trajectories / max(1e-9, time.monotonic() - started):.1f} trajectories/s" if trajectories else "")


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
        reason = " ".join(str(cause).split())
        raise WorkError(f"a worker failed: {type(cause).__name__}: {reason:.300}; finished shards are kept") from None
    except RayActorError as error:
        reason = str(error).strip().splitlines()[0]
        raise WorkError(f"a worker died {RESTARTS + 1} times ({reason:.200}); finished shards are kept; "
                        "lower rollout.batch_size if memory ran out, and run the same command to resume") from None
    except RayError as error:
        raise WorkError(f"Ray failed ({str(error).strip().splitlines()[0]:.200}); run the same command to resume") from None
    return receipt


def _report(manifest: DatasetManifest, out: str, kept: int, made: int, seconds: float) -> dict[str, object]:
    totals = manifest.totals
    return {"out": out, "rows": totals.rows, "shards": len(manifest.shards), "made": made, "kept": kept,
            "events": totals.events, "tokens": totals.tokens, "bytes": totals.bytes, "seconds": round(seconds, 2)}
