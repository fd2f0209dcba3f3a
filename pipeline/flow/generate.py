"""Make a dataset: plan its shards, keep those that are there and sound, make the rest, commit the manifest.

A shard is a pure function of the dataset's identity and its place in the plan, so it does not matter who makes it, where, or in
which order: `generate_dataset` makes them in this process, and the Ray job hands it a maker of its own.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import pyarrow as pa
import torch

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.files.layout import with_layout
from tsdfm.pipeline.dataset.files.parts import compose, is_made, present_units, remove_units, units_of, write_unit
from tsdfm.pipeline.dataset.files.receipts import receipt_path, with_receipt
from tsdfm.pipeline.dataset.growth import (
    GROWING,
    carried_over,
    finish_growth,
    former_dataset,
    history_of,
    remove_growth,
    whole_files,
)
from tsdfm.pipeline.dataset.jump_log import JumpLog
from tsdfm.pipeline.dataset.manifest import (
    MANIFEST_FILE,
    Finished,
    ShardPlan,
    claim,
    commit,
    folders,
    may_claim,
    on_record,
    plan,
    read_manifest,
)
from tsdfm.pipeline.flow.compass import Compass, EnergyFunction
from tsdfm.pipeline.flow.opening import Models, identity_of, open_models, resized
from tsdfm.pipeline.flow.prompts import FREE
from tsdfm.pipeline.flow.rollout import Begun, roll_out_begun
from tsdfm.pipeline.flow.texts.blocks import block_trajectories
from tsdfm.pipeline.models.folder import EMBEDDED
from tsdfm.pipeline.storage.hub.models import pinned
from tsdfm.pipeline.storage.in_order import Mapper, in_order
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.storage.store import Store
from tsdfm.schemas.base import InputError, WorkError, recordable
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.manifest import DatasetManifest, Identity
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.reports import GenerateReport
from tsdfm.schemas.terms import Arm
from tsdfm.schemas.trajectory import arrow_schema

NO_OUT = "out: no folder for the dataset; give --out OUT, or 'out' in the config"


@dataclass(frozen=True)
class Work:
    """A dataset in the making."""

    config: GenerateConfig
    models: Models
    identity: Identity
    store: Store
    files: list[ShardPlan]
    items: list[ShardPlan]  # the units of work: the files, or what files are made of
    check: Callable[[], None]  # raises WorkError once another run has taken the dataset over


class Maker(Protocol):
    """Who makes the shards of a dataset."""

    def device(self) -> torch.device:
        """The device that shards are made on; asked after the config's models have been opened and found fit."""

    @property
    def mapper(self) -> Mapper:
        """Who reads the files that are there already."""

    def make(self, work: Work, missing: Sequence[int], progress: Progress) -> dict[int, Finished]:
        """Make the shards of these indices. Raises WorkError, or what a user's interrupt is; made shards stay."""


class InThisProcess:
    """Makes shards one after another, here: on a GPU if there is one, unless another device is given."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def device(self) -> torch.device:
        """See `Maker.device`."""
        return self._device

    @property
    def mapper(self) -> Mapper:
        """See `Maker.mapper`: threads."""
        return in_order

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
    opened = models.teacher
    named = config.teacher.partition(":")[0] in (EMBEDDED, "hub")
    teacher = config.teacher if named else recordable(str(opened.path.absolute()))
    asked = identity_of(config, models, maker.device())
    with store.owned(progress) as check:
        finish_growth(store)
        identity = with_layout(asked, store)
        former = former_dataset(store, identity, partial(resized, identity, models))
        work = _work(config, models, identity, store if former is None else store.inside(GROWING), check)
        claim(work.store, identity, config.prompts)
        if former is None:
            remove_growth(store)  # one that was begun, and is not asked for any more
        kept, unsound = _kept(work, progress, maker.mapper)
        for path in unsound:
            work.store.remove(receipt_path(path))
        if former is not None:
            kept |= _carried(work, store, former, kept, progress, maker.mapper)
        there = _units_there(work, kept)
        missing = [index for index in range(len(work.items)) if index not in there]
        made = maker.make(work, missing, progress) if missing else {}
        done = _all_files(work, kept, made)
        check()
        manifest = commit(work.store, identity, done, opened.vocabulary, teacher, history_of(store, former))
        finish_growth(store)
    totals = manifest.totals
    return GenerateReport(
        out=config.out, rows=totals.rows, shards=len(work.items), made=len(made), kept=len(there), events=totals.events,
        tokens=totals.tokens, bytes=totals.bytes, unsound=unsound, seconds=round(time.monotonic() - started, 2),
        grown_from=former.identity.trajectories if former else None)


@dataclass(frozen=True)
class Standing:
    """How far a dataset is: which of its shards are there, or will be taken over from a smaller one, and which are missing."""

    models: Models
    identity: Identity
    items: list[ShardPlan]
    kept: dict[int, Finished]  # files, by their place in the plan
    carried: list[int]  # indices into `items`
    units: set[int]  # indices into `items` of what is there, by itself or in a file

    @property
    def missing(self) -> list[int]:
        """The indices of the shards that have to be made."""
        there = {*self.units, *self.carried}
        return [index for index in range(len(self.items)) if index not in there]


def standing(config: GenerateConfig, device: torch.device, progress: Progress = unheard, mapper: Mapper = in_order) -> Standing:
    """How far the dataset of a config is. Raises InputError where `generate_dataset` would; nothing is written, or locked.

    `device`: what its shards are made on. The models are left on the CPU. `mapper`: who reads what is there.
    """
    if config.out is None:
        raise InputError(NO_OUT)
    store, models = open_store(config.out), open_models(config, torch.device("cpu"))
    identity = with_layout(identity_of(config, models, device), store)
    if store.read(f"{GROWING}/{MANIFEST_FILE}") is not None:  # complete, and not yet in its place
        store = store.inside(GROWING)
    former = former_dataset(store, identity, partial(resized, identity, models))
    work = _work(config, models, identity, store if former is None else store.inside(GROWING), lambda: None)
    may_claim(work.store, identity, config.prompts)
    kept, _ = _kept(work, progress, mapper)
    units = _units_there(work, kept)
    size, whole = identity.trajectories_per_file, 0 if former is None else former.identity.trajectories
    carried = [index for index, item in enumerate(work.items)
               if index not in units and min((item.start // size + 1) * size, identity.trajectories) <= whole]
    return Standing(models, identity, work.items, kept, carried, units)


def make_shard(models: Models, identity: Identity, store: Store, item: ShardPlan) -> Finished:
    """Roll out, encode and write one unit of work: a pure function of (identity, item). Raises WorkError if it can't be.

    One that a worker has written before it died is taken as it is.
    """
    there = is_made(store, identity, item)
    if there is not None:
        return there
    return write_unit(store, identity, item, rows_of(models, identity, item))


def rows_of(models: Models, identity: Identity, item: ShardPlan) -> pa.Table:
    """The rows of one unit of work, rolled out: of every trajectory its arms, in the order of ids.

    Where a trajectory is a block of a text, so many texts are rolled out together as else trajectories.
    """
    logs, batch = list[JumpLog](), identity.rollout.batch_size * identity.per_text
    for start in range(item.start, item.stop, batch):
        ids = range(start, min(start + batch, item.stop))
        by_arm = [_rolled_out(models, identity, ids, arm) for arm in identity.arms]
        logs += [log for pair in zip(*by_arm, strict=True) for log in pair]
    return shards.to_table(logs, models.teacher.vocabulary, arrow_schema(identity.grid), identity.teacher.end_id)


def _rolled_out(models: Models, identity: Identity, ids: range, arm: Arm) -> list[JumpLog]:
    """Trajectories of one arm that are rolled out together; of texts in blocks, those of whole texts."""
    given, blocks = models.given, identity.blocks

    def roll_out(begun: Begun) -> list[JumpLog]:
        return roll_out_begun(models.teacher.network, models.compass, identity.rollout, identity.shaping, begun, arm)

    if blocks is None:
        return roll_out(Begun(ids, None if given is None else given.fixed(ids)))
    first = ids[:: blocks.per_text]
    fixed = torch.full((len(first), identity.grid.length), FREE) if given is None else given.fixed(first)
    return block_trajectories(roll_out, [number // blocks.per_text for number in first], blocks, fixed,
                              identity.teacher.end_id)


def _work(config: GenerateConfig, models: Models, identity: Identity, store: Store, check: Callable[[], None]) -> Work:
    files = plan(identity)
    return Work(config, models, identity, store, files, [unit for item in files for unit in units_of(identity, item)], check)


def _kept(work: Work, progress: Progress, mapper: Mapper) -> tuple[dict[int, Finished], list[str]]:
    """The sound files that are already there, by their place in the plan, and the paths of unsound ones."""
    there = {f"{folder}/{name}" for folder in folders(item.path for item in work.files) for name in work.store.names(folder)}
    found: dict[int, Finished] = {}
    manifest = read_manifest(work.store) if work.store.read(MANIFEST_FILE) is not None else None
    unsound: list[str] = []
    present = [index for index, item in enumerate(work.files) if item.path in there]
    if manifest is None:
        shards_there = in_order(partial(with_receipt, work.store, work.identity), [work.files[index] for index in present])
    else:
        records = {record.path: record for record in manifest.shards}
        shards_there = mapper(partial(on_record, work.store), [records.get(work.files[index].path) for index in present])
    for done, (index, shard) in enumerate(zip(present, shards_there, strict=True), 1):
        if shard is None:
            unsound.append(work.files[index].path)
        else:
            found[index] = shard
        progress("checking what is there", done, len(present), f"{len(unsound)} to be made again" if unsound else "")
    return found, unsound


def _carried(work: Work, store: Store, former: DatasetManifest, kept: Mapping[int, Finished], progress: Progress,
             mapper: Mapper) -> dict[int, Finished]:
    """The files of a growing dataset whose rows were there before it, taken over."""
    found: dict[int, Finished] = {}
    whole = [index for index, item in enumerate(work.files) if index not in kept and item.stop <= former.identity.trajectories]
    records = whole_files(former)
    given = [(item, records.get((item.start, item.stop))) for item in (work.files[index] for index in whole)]
    taken = mapper(partial(carried_over, store, work.store, work.identity), given)
    for done, (index, shard) in enumerate(zip(whole, taken, strict=True), 1):
        work.check()
        if shard is not None:
            found[index] = shard
        progress("keeping what is there", done, len(whole))
    return found


def _units_there(work: Work, kept: Mapping[int, Finished]) -> set[int]:
    """The places in `work.items` of units whose file is kept, and of those that wait for others of their file."""
    per_file = work.identity.shards_per_file or 1
    found = {unit for index in kept for unit in range(index * per_file, min((index + 1) * per_file, len(work.items)))}
    if per_file > 1:
        unfinished = [index for index in range(len(work.files)) if index not in kept]
        waiting = in_order(lambda index: present_units(work.store, work.identity, work.files[index]), unfinished)
        found |= {index * per_file + number for index, numbers in zip(unfinished, waiting, strict=True) for number in numbers}
    return found


def _all_files(work: Work, kept: Mapping[int, Finished], made: Mapping[int, Finished]) -> list[Finished]:
    """Every file, in order. One whose units are all there, for its maker was killed before it made it of them, is made."""
    if (work.identity.shards_per_file or 1) == 1:
        both = {**kept, **made}
        return [both[index] for index in range(len(work.files))]

    def settle(index: int) -> Finished:
        item = work.files[index]
        done = with_receipt(work.store, work.identity, item) or compose(work.store, work.identity, item)
        if done is None:
            raise WorkError(f"{work.store.uri}/{item.path}: a unit of it was damaged or removed meanwhile; run the "
                            "same command to make that again")
        remove_units(work.store, item)
        return done

    made_now = [index for index in range(len(work.files)) if index not in kept]
    settled = dict(zip(made_now, in_order(settle, made_now), strict=True))
    return [kept[index] if index in kept else settled[index] for index in range(len(work.files))]
