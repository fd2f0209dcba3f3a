"""What a worker runs: it makes one shard and writes it straight to OUT; all that travels back is what the manifest needs."""

import time
from dataclasses import dataclass, replace

import torch

from tsdfm.jobs.generate.metrics import measure
from tsdfm.jobs.generate.timed import Timed
from tsdfm.pipeline.dataset.manifest import Finished, ShardPlan, digest, is_claimed
from tsdfm.pipeline.flow.generate import make_shard
from tsdfm.pipeline.flow.opening import Models, identity_of, open_models
from tsdfm.pipeline.flow.prompts import Given
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.storage.store import Store
from tsdfm.schemas.base import WorkError
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.manifest import Identity


@dataclass(frozen=True)
class Order:
    """What every worker of a run must know: what to make, and the address of the store that it goes to."""

    config: GenerateConfig
    identity: Identity
    address: str

    @classmethod
    def of(cls, config: GenerateConfig, identity: Identity, address: str) -> "Order":
        """An order whose config names no file of prompts: no node need have it, for their tokens come with each shard."""
        return cls(config.model_copy(update={"prompts": None, "trajectories": identity.trajectories}), identity, address)


def make(order: Order, item: ShardPlan, given: Given | None) -> Finished:
    """Make the shard `item` and write it to the store.

    Args:
        order: of the run. What it names is opened once per process, and kept for the shards that follow.
        item: the shard.
        given: the prompts of its trajectories, if they have any.

    Raises InputError or WorkError: what this node lacks, or that the shard can't be made.
    """
    models, store = _opened(order)
    started, timed = time.monotonic(), None if models.compass is None else Timed(models.compass)
    done = make_shard(replace(models, compass=timed, given=given), order.identity, store, item)
    rows = done.record.rows
    measure(store.uri, trajectories=rows, tokens=rows * (order.identity.rollout.length or 0), shards=1,
            making_seconds=time.monotonic() - started, compass_seconds=0.0 if timed is None else timed.seconds)
    return done


def check_alike(config: GenerateConfig, models: Models, identity: Identity, device: torch.device) -> None:
    """Raises WorkError unless the models of this node are those of an identity that another made; prompts come from there."""
    settled = {name: getattr(identity, name) for name in ("shards_per_file", "prompts")}
    if digest(identity_of(config, models, device).model_copy(update=settled)) != digest(identity):
        raise WorkError("its teacher, compass or tokenizer differs from the driver's; give every node the same files")


_kept: list[tuple[Order, Models, Store]] = []  # of this process: what the last order names


def _opened(order: Order) -> tuple[Models, Store]:
    """Models and store of an order, opened and compared with the driver's when this process first needs them."""
    for kept, models, store in _kept:
        if kept == order:
            return models, store
    torch.set_num_threads(order.config.rollout.threads)
    device = torch.device("cuda" if order.identity.device == "cuda" else "cpu")
    store, models = open_store(order.address), open_models(order.config, device)
    check_alike(order.config, models, order.identity, device)
    if not is_claimed(store, order.identity):
        raise WorkError(f"{store.uri}: not the folder that this run writes to, which every node must share; give --out a "
                        "shared folder, or a URI")
    _kept[:] = [(order, models, store)]
    return models, store
