"""The Ray actor that owns a teacher and a compass and writes shards straight to OUT."""

import time
from dataclasses import dataclass
from typing import Any

import ray
import torch

from tsdfm.pipeline.dataset.manifest import Finished, ShardPlan, digest
from tsdfm.pipeline.flow.generate import make_shard
from tsdfm.pipeline.flow.opening import identity_of, open_models
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.schemas.base import WorkError
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.manifest import Identity


@dataclass(frozen=True)
class Receipt:
    """All that travels back from a worker: which shard, what the manifest needs, and how long it took."""

    index: int
    done: Finished
    seconds: float


class ShardWorker:
    """Owns the models; `make` is one unit of work. A plain class: `as_actor` makes a Ray actor of it."""

    def __init__(self, config: GenerateConfig, identity: Identity, uri: str) -> None:
        torch.set_num_threads(config.rollout.threads)
        device = torch.device("cuda" if identity.device == "cuda" else "cpu")
        self.identity, self.store = identity, open_store(uri)
        self.models = open_models(config, device)
        if digest(identity_of(config, self.models, device)) != digest(identity):
            raise WorkError("a worker's teacher, compass or tokenizer differs from the driver's; "
                            "give every node the same files")

    def make(self, index: int, item: ShardPlan) -> Receipt:
        """Make the shard `item`, number `index` of the dataset, and write it to the store; tells the seconds that it took."""
        started = time.monotonic()
        done = make_shard(self.models, self.identity, self.store, item)
        return Receipt(index, done, time.monotonic() - started)


def as_actor(threads: int, gpus: int, restarts: int) -> Any:
    """The Ray actor class: restarted elsewhere when its process or node dies, its shard retried, both capped."""
    actor: Any = ray.remote(ShardWorker)
    return actor.options(num_cpus=threads if not gpus else 1, num_gpus=gpus, max_restarts=restarts, max_task_retries=restarts)
