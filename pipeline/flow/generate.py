"""Make a dataset: plan its shards, keep those that are there and sound, make the rest, commit the manifest.

A shard is a pure function of the dataset's identity and its place in the plan, so it does not matter who makes it, where, or in
which order: `generate_dataset` makes them in this process, and the Ray job hands it a maker of its own.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.growth import GROWING, carried_over, finish_growth, former_dataset, history_of, remove_growth
from tsdfm.pipeline.dataset.manifest import (
    MANIFEST_FILE,
    Finished,
    ShardPlan,
    claim,
    commit,
    digest,
    existing_shard,
    finished,
    leave_receipt,
    may_claim,
    plan,
    read_manifest,
)
from tsdfm.pipeline.flow.compass import Compass, EnergyFunction
from tsdfm.pipeline.flow.opening import Models, identity_of, open_models
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.pipeline.models.folder import EMBEDDED
from tsdfm.pipeline.storage.hub.models import pinned
from tsdfm.pipeline.storage.in_order import in_order
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.storage.store import Store
from tsdfm.schemas.base import InputError
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.manifest import DatasetManifest, Identity
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.reports import GenerateReport

NO_OUT = "out: no folder for the dataset; give --out OUT, or 'out' in the config"


@dataclass(frozen=True)
class Work:
    """A dataset in the making."""

    config: GenerateConfig
    models: Models
    identity: Identity
    store: Store
    items: list[ShardPlan]
    check: Callable[[], None]  # raises WorkError once another run has taken the dataset over


class Maker(Protocol):
    """Who makes the shards of a dataset."""

    def device(self) -> torch.device:
        """The device that shards are made on; asked after the config's models have been opened and found fit."""

    def make(self, work: Work, missing: Sequence[int], progress: Progress) -> dict[int, Finished]:
        """Make the shards of these indices. Raises WorkError, or what a user's interrupt is; made shards stay."""


class InThisProcess:
    """Makes shards one after another, here: on a GPU if there is one, unless another device is given."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def device(self) -> torch.device:
        """See `Maker.device`."""
        return self._device

    def make(self, work: Work, missing: Sequence[int], progress: Progress) -> dict[int, Finished]:
        """See `Maker.make`."""
        work.models.to(self._device)
        made: dict[int, Finished] = {}
        for index in missing:
            work.check()
            made[index] = make_shard(work.models, work.identity, work.store, work.items[index])
            progress("making shards", len(made), len(missing))
        return made


def generate_dataset(
    config: GenerateConfig, *, compass: Compass | EnergyFunction | None = None, progress: Progress = unheard,
    maker: Maker | None = None,
) -> GenerateReport:
    """Make, or go on making, the dataset of a config; by default in this process, without Ray.

    Shards that are there and sound are kept; where a finished dataset has fewer trajectories, it grows. No process-wide setting
    is changed: torch computes with the threads that it has, which can move the last bits of an energy, so set them to
    `rollout.threads` yourself where bytes must be repeatable.

    Args:
        config: what to make; `workers` and `address` are the maker's business.
        compass: in place of `config.compass`: an object of the `Compass` protocol, or a function (states [B, K, L] int64,
            t [B]) -> energies [B, K]. The manifest names it by its `fingerprint` attribute, or else by module and name.
        progress: called as shards are checked and made.
        maker: who makes the shards that are missing; None: this process.

    Raises:
        InputError: the config, a model or OUT is not fit for it; nothing was changed.
        WorkError: the disk is full, say; finished shards are kept, and the same call goes on.
    """
    if config.out is None:
        raise InputError(NO_OUT)
    started, store = time.monotonic(), open_store(config.out)
    config = config.model_copy(update={"teacher": pinned(config.teacher), "compass": pinned(config.compass)})
    maker = maker or InThisProcess()
    models = open_models(config, torch.device("cpu"), compass)
    identity = identity_of(config, models, maker.device())
    with store.owned(progress) as check:
        finish_growth(store)
        former = former_dataset(store, identity)
        work = Work(config, models, identity, store if former is None else store.inside(GROWING), plan(identity), check)
        claim(work.store, identity)
        if former is None:
            remove_growth(store)  # one that was begun, and is not asked for any more
        kept, unsound = _kept(work, progress)
        if former is not None:
            kept |= _carried(work, store, former, kept, progress)
        missing = [index for index in range(len(work.items)) if index not in kept]
        made = maker.make(work, missing, progress) if missing else {}
        done = [(kept | made)[index] for index in range(len(work.items))]
        check()
        opened = models.teacher
        teacher = config.teacher if config.teacher.partition(":")[0] in (EMBEDDED, "hub") else str(opened.path.absolute())
        manifest = commit(work.store, identity, done, opened.vocabulary, teacher, history_of(store, former))
        finish_growth(store)
    totals = manifest.totals
    return GenerateReport(
        out=config.out, rows=totals.rows, shards=len(manifest.shards), made=len(made), kept=len(kept), events=totals.events,
        tokens=totals.tokens, bytes=totals.bytes, unsound=unsound, seconds=round(time.monotonic() - started, 2),
        grown_from=former.identity.trajectories if former else None)


@dataclass(frozen=True)
class Standing:
    """How far a dataset is: which of its shards are there, or will be taken over from a smaller one, and which are missing."""

    models: Models
    identity: Identity
    items: list[ShardPlan]
    kept: dict[int, Finished]
    carried: list[int]

    @property
    def missing(self) -> list[int]:
        """The indices of the shards that have to be made."""
        there = {*self.kept, *self.carried}
        return [index for index in range(len(self.items)) if index not in there]


def standing(config: GenerateConfig, device: torch.device, progress: Progress = unheard) -> Standing:
    """How far the dataset of a config is. Raises InputError where `generate_dataset` would; nothing is written, or locked.

    `device`: what its shards are made on. The models are left on the CPU.
    """
    if config.out is None:
        raise InputError(NO_OUT)
    store, models = open_store(config.out), open_models(config, torch.device("cpu"))
    identity = identity_of(config, models, device)
    if store.read(f"{GROWING}/{MANIFEST_FILE}") is not None:  # complete, and not yet in its place
        store = store.inside(GROWING)
    former = former_dataset(store, identity)
    work = Work(config, models, identity, store if former is None else store.inside(GROWING), plan(identity), lambda: None)
    may_claim(work.store, identity)
    kept, _ = _kept(work, progress)
    carried = [] if former is None else [
        index for index, item in enumerate(work.items) if index not in kept and item.stop <= former.identity.trajectories]
    return Standing(models, identity, work.items, kept, carried)


def make_shard(models: Models, identity: Identity, store: Store, item: ShardPlan) -> Finished:
    """Roll out, encode and write one shard: a pure function of (identity, item). Raises WorkError if it can't be written."""
    logs, batch = [], identity.rollout.batch_size
    for start in range(item.start, item.stop, batch):
        ids = range(start, min(start + batch, item.stop))
        by_arm = [roll_out(models.teacher.network, models.compass, identity.rollout, identity.shaping, ids, arm)
                  for arm in identity.arms]
        logs += [log for pair in zip(*by_arm, strict=True) for log in pair]
    table = shards.to_table(logs, models.teacher.vocabulary)
    data = shards.encode(table, digest(identity))
    store.write(item.path, data)
    done = finished(item.path, data, table)
    leave_receipt(store, done)
    return done


def _kept(work: Work, progress: Progress) -> tuple[dict[int, Finished], list[str]]:
    """The sound shards that are already there, and the paths of unsound ones."""
    there = set(work.store.names("data"))
    found: dict[int, Finished] = {}
    manifest = read_manifest(work.store) if work.store.read(MANIFEST_FILE) is not None else None
    records = None if manifest is None else {record.path: record for record in manifest.shards}
    unsound: list[str] = []
    present = [index for index, item in enumerate(work.items) if item.path.rpartition("/")[2] in there]
    shards_there = in_order(lambda index: existing_shard(work.store, work.items[index], records), present)
    for done, (index, shard) in enumerate(zip(present, shards_there, strict=True), 1):
        if shard is None:
            unsound.append(work.items[index].path)
        else:
            found[index] = shard
        progress("checking what is there", done, len(present), f"{len(unsound)} to be made again" if unsound else "")
    return found, unsound


def _carried(work: Work, store: Store, former: DatasetManifest, kept: Mapping[int, Finished], progress: Progress
             ) -> dict[int, Finished]:
    """The shards of a growing dataset whose rows were there before it, taken over."""
    found: dict[int, Finished] = {}
    whole = [index for index, item in enumerate(work.items) if index not in kept and item.stop <= former.identity.trajectories]
    for done, index in enumerate(whole, 1):
        work.check()
        shard = carried_over(store, former, work.store, work.identity, work.items[index])
        if shard is not None:
            found[index] = shard
        progress("keeping what is there", done, len(whole))
    return found
