"""What runs on Ray: the task that makes one shard and writes it straight to OUT, and what it says meanwhile."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import ray
import torch
from ray.util.metrics import Counter

from tsdfm.jobs.generate.collect import Receipt
from tsdfm.jobs.generate.signs import Sign, birth
from tsdfm.jobs.generate.timed import Timed
from tsdfm.pipeline.dataset.manifest import ShardPlan, digest, is_claimed
from tsdfm.pipeline.flow.generate import make_shard
from tsdfm.pipeline.flow.opening import Models, identity_of, open_models
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.storage.store import Store
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.manifest import Identity

BEAT_SECONDS = 2.0


@dataclass(frozen=True)
class Order:
    """What every worker of a run must know: what to make, and the address of the store that it goes to."""

    config: GenerateConfig
    identity: Identity
    address: str


def make(order: Order, index: int, item: ShardPlan, key: str, signs: Any) -> Receipt:
    """Make the shard `item`, number `index` of the dataset, and write it to the store.

    Args:
        order: of the run. What it names is opened once per process, and kept for the shards that follow.
        index: of the shard.
        item: the shard.
        key: names this attempt to `signs`.
        signs: handle of the `Signs` actor.

    Raises WorkError, which names the node: what it lacks, or that the shard can't be made there.
    """
    started = time.monotonic()
    with _signs_of_life(key, signs):
        try:
            models, store = _opened(order)
            timed = None if models.compass is None else Timed(models.compass)
            done = make_shard(replace(models, compass=timed), order.identity, store, item)
        except (InputError, WorkError) as error:
            raise WorkError(f"node {node_name()}: {error}") from None
    seconds = time.monotonic() - started
    rows = done.record.rows
    _measure(store.uri, trajectories=rows, tokens=rows * (order.identity.rollout.length or 0), shards=1, making_seconds=seconds,
             compass_seconds=0.0 if timed is None else timed.seconds)
    return Receipt(index, done, seconds)


# Counters of all shards that were made, each by dataset: Ray exports them, for Prometheus, as ray_tsdfm_NAME_total.
METRICS = {
    "trajectories": "Trajectories made, those of both arms", "tokens": "Tokens of the texts of those trajectories",
    "shards": "Shards made", "making_seconds": "Seconds that workers took to make those shards",
    "compass_seconds": "Seconds of those in which the compass scored",
}


@cache
def _counters() -> dict[str, Counter]:
    return {name: Counter(f"tsdfm_{name}", description=text, tag_keys=("dataset",)) for name, text in METRICS.items()}


def _measure(dataset: str, **values: float) -> None:
    """Add to the counters of METRICS; a dataset is worth finishing, whatever ails them."""
    with suppress(Exception):
        for name, value in values.items():
            if value > 0:  # a counter can't be moved by nothing
                _counters()[name].inc(value, {"dataset": dataset})


def node_name() -> str:
    """This node, as people may find it."""
    return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"


_kept: list[tuple[Order, Models, Store]] = []  # of this process: what the last order names


def _opened(order: Order) -> tuple[Models, Store]:
    """Models and store of an order, opened and compared with the driver's when this process first needs them."""
    for kept, models, store in _kept:
        if kept == order:
            return models, store
    torch.set_num_threads(order.config.rollout.threads)
    device = torch.device("cuda" if order.identity.device == "cuda" else "cpu")
    store, models = open_store(order.address), open_models(order.config, device)
    here = identity_of(order.config, models, device).model_copy(update={"shards_per_file": order.identity.shards_per_file})
    if digest(here) != digest(order.identity):
        raise WorkError("its teacher, compass or tokenizer differs from the driver's; give every node the same files")
    if not is_claimed(store, order.identity):
        raise WorkError(f"{store.uri}: not the folder that this run writes to, which every node must share; give --out a "
                        "shared folder, or a URI")
    _kept[:] = [(order, models, store)]
    return models, store


@contextmanager
def _signs_of_life(key: str, signs: Any) -> Iterator[None]:
    """Tell `signs` every few seconds that this process lives."""
    node, node_id, pid = node_name(), ray.get_runtime_context().get_node_id(), os.getpid()
    born, stop = birth(pid), threading.Event()

    def beat() -> None:
        count = 0
        while True:
            with suppress(Exception):  # whoever listens may be gone, and the shard is worth finishing all the same
                signs.beat.remote(key, Sign(node, node_id, pid, born, count))
            count += 1
            if stop.wait(BEAT_SECONDS):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
