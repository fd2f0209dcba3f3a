"""The Ray actor that owns a teacher and a compass and writes shards straight to OUT."""

import time
from dataclasses import dataclass
from typing import Any

import ray
import torch

from tsdfm.pipeline import shards
from tsdfm.pipeline.dataset import Finished, ShardPlan, digest, finished
from tsdfm.pipeline.models import identity_of, open_models
from tsdfm.pipeline.rollout import roll_out
from tsdfm.pipeline.storage import Store
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
        self.config, self.identity, self.store = config, identity, Store(uri)
        self.models = open_models(config, device)
        mine = identity_of(config, self.models, device)
        if digest(mine) != digest(identity):
            raise WorkError("a worker's teacher, compass or tokenizer differs from the driver's; "
                            "give every node the same files")

    def make(self, index: int, item: ShardPlan) -> Receipt:
        """Roll out, encode and write one shard; a pure function of (identity, shard)."""
        started = time.monotonic()
        logs = []
        for start in range(item.start, item.stop, self.config.rollout.batch_size):
            ids = range(start, min(start + self.config.rollout.batch_size, item.stop))
            by_arm = [
                roll_out(self.models.teacher, self.models.compass, self.identity.rollout, self.identity.shaping, ids, arm)
                for arm in self.identity.arms
            ]
            logs += [log for pair in zip(*by_arm, strict=True) for log in pair]
        table = shards.to_table(logs, self.models.checkpoint.vocabulary)
        data = shards.encode(table, digest(self.identity))
        self.store.write(item.path, data)
        return Receipt(index, finished(item.path, data, table), time.monotonic() - started)


def as_actor(threads: int, gpus: int, restarts: int) -> Any:
    """The Ray actor class: restarted elsewhere when its process or node dies, its shard retried, both capped."""
    actor: Any = ray.remote(ShardWorker)
    return actor.options(num_cpus=threads if not gpus else 1, num_gpus=gpus, max_restarts=restarts, max_task_retries=restarts)
