"""One dataset as an endless, shuffled stream of rows: place p of the stream is a pure function of (dataset, seed, p).

Epoch after epoch the shards are permuted and taken in groups, and the rows are permuted within a group. Only the group in use
and the one before it are held decoded. A group's rows do not depend on the epoch that drew its shards together, so a dataset of
one group is decoded once.

What is random comes from Philox counters seeded by (seed, purpose, dataset, epoch, ...), whose raw output numpy keeps fixed
over its versions (its distributions it does not): a run resumed after an upgrade reads the same rows.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.files.check import check_unit
from tsdfm.pipeline.dataset.files.parts import file_of
from tsdfm.pipeline.dataset.manifest import ShardPlan, opened_shard, plan, read_manifest, read_shard_bytes
from tsdfm.pipeline.loader.row_filter import RowFilter, energies_of, filter_by_energy
from tsdfm.pipeline.loader.windows import Int, Trajectories
from tsdfm.pipeline.storage.cache import kept, through_cache
from tsdfm.pipeline.storage.in_order import Mapper, in_order
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.storage.store import Store
from tsdfm.schemas.base import InputError
from tsdfm.schemas.columns import values
from tsdfm.schemas.distill import DataConfig
from tsdfm.schemas.manifest import DatasetManifest, ShardRecord
from tsdfm.schemas.terms import Arm

SHARDS, ROWS, STRATA, POINTS = range(4)  # purposes of random numbers: no two share a counter
HELD = 2  # groups of one dataset that are held decoded: a batch may straddle two

K = TypeVar("K")
V = TypeVar("V")


def bits(count: int, *key: int) -> npt.NDArray[np.uint64]:
    """`count` random words, [count] uint64: a function of `key`, whole numbers from 0, alone."""
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count)


def permutation(count: int, *key: int) -> Int:
    """The numbers 0..count-1 in a random order, [count] int64: a function of `key`, whole numbers from 0, alone."""
    return np.argsort(bits(count, *key), kind="stable")


def uniform(count: int, *key: int) -> npt.NDArray[np.float64]:
    """Uniform numbers of [0, 1), [count] float64: a function of `key`, whole numbers from 0, alone."""
    return (bits(count, *key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Recent(Generic[K, V]):
    """The HELD values used last, made on demand; an older one goes before a new one is made. Pickles empty."""

    def __init__(self, make: Callable[[K], V]) -> None:
        self._make = make
        self._held: dict[K, V] = {}

    def __call__(self, key: K) -> V:
        """The value of `key`: the one that is held, else made now."""
        if key in self._held:
            self._held[key] = self._held.pop(key)  # to the end: used last
        else:
            while len(self._held) >= HELD:
                del self._held[next(iter(self._held))]
            self._held[key] = self._make(key)
        return self._held[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return Recent, (self._make,)


class _Stamps(dict[str, str]):
    """The stamps of files whose checksums this process found right, by path. Pickles empty."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _Stamps, ()


@dataclass(frozen=True)
class OpenDataset:
    """An opened dataset: one arm of a range of trajectory ids, or the best of them."""

    path: str  # as configured
    store: Store
    manifest: DatasetManifest
    arm: Arm
    ids: range  # of trajectories that are read
    shards: list[tuple[ShardPlan, ShardRecord]]  # units of work with some of the ids, and the file that each is in
    rows_of_shard: Int
    row_filter: RowFilter | None = None  # None: every row, all alike
    _hashed: _Stamps = field(default_factory=_Stamps, compare=False)

    @classmethod
    def open(cls, path: str, data: DataConfig, mapper: Mapper = in_order) -> "OpenDataset":
        """What is learnt from: the manifest; and, where rows are chosen by their energies, those, by `mapper`.

        Raises InputError if there is no dataset, a shard is not named, or the arm was not made.
        """
        whole = cls._open(path, data)
        held_out = round(data.held_out * len(whole.ids))
        source = whole if not data.held_out else whole._of(whole.ids[: len(whole.ids) - max(1, held_out)])
        return source if data.best is None and not data.energy_beta else source._selected(data, mapper)

    @classmethod
    def open_held_out(cls, path: str, data: DataConfig) -> "OpenDataset":
        """What is held out: every row of the last ids. Raises InputError as `open`."""
        whole = cls._open(path, data)
        return whole._of(whole.ids[len(whole.ids) - max(1, round(data.held_out * len(whole.ids))) :])

    @classmethod
    def _open(cls, path: str, data: DataConfig) -> "OpenDataset":
        store = open_store(path)
        manifest = read_manifest(store)
        identity = manifest.identity
        if data.arm not in identity.arms:
            raise InputError(f"{store.uri}: holds no '{data.arm}' rows, it was generated with arm '{identity.arm}'; "
                             f"set data.arm to '{identity.arms[0]}', or give a dataset that has both")
        ids = range(min(data.trajectories or identity.trajectories, identity.trajectories))
        return cls(path, store, manifest, data.arm, ids, [], np.array([], np.int64))._of(ids)

    def _of(self, ids: range) -> "OpenDataset":
        """The same, of other ids."""
        if not ids:
            raise InputError(f"{self.store.uri}: no trajectory is left to learn from; lower data.held_out, or give more")
        identity = self.manifest.identity
        records = {record.path: record for record in self.manifest.shards}
        files = [item for item in plan(identity) if item.start < ids.stop and item.stop > ids.start]
        unnamed = [item.path for item in files if item.path not in records]
        if unnamed:
            raise InputError(f"{self.store.uri}/{unnamed[0]}: not in the manifest; run generate again to remake it")
        starts = [(item, start) for item in files for start in range(item.start, item.stop, identity.shard_size)]
        units = [ShardPlan(item.path, start, min(start + identity.shard_size, item.stop)) for item, start in starts]
        units = [unit for unit in units if unit.start < ids.stop and unit.stop > ids.start]
        rows = np.array([min(unit.stop, ids.stop) - max(unit.start, ids.start) for unit in units])
        return replace(self, ids=ids, shards=[(unit, records[unit.path]) for unit in units], rows_of_shard=rows)

    def _selected(self, data: DataConfig, mapper: Mapper) -> "OpenDataset":
        """The stream without the rows, and the shards, that `data.best` leaves out."""
        if self.manifest.identity.compass is None:
            raise InputError(f"{self.store.uri}: holds no energies, it was generated with compass 'none'; leave out data.best "
                             "and data.energy_beta, or give a dataset made with a compass")
        energies = list(self._energies(mapper))
        row_filter = filter_by_energy(energies, data.best or 1.0, data.energy_beta)
        read = [shard for shard, rows in enumerate(row_filter.rows) if len(rows)]
        return replace(self, shards=[self.shards[shard] for shard in read], row_filter=row_filter.of_shards(read),
                       rows_of_shard=np.array([len(row_filter.rows[shard]) for shard in read]))

    def _energies(self, mapper: Mapper) -> Iterator[npt.NDArray[np.float64]]:
        """Of every shard, the final energies of its rows. Files are read once, and the energies kept for other processes."""
        by_file = [(record, list(units)) for record, units in groupby(enumerate(self.shards), key=lambda each: each[1][1])]
        records = [record for record, _ in by_file]

        def read() -> bytes:
            return b"".join(energies.tobytes() for energies in mapper(self._energies_in, records))

        names = ["energies", self.arm, *(f"{record.sha256}:{record.rows}" for record in records)]
        key = hashlib.sha256(" ".join(names).encode()).hexdigest()
        of_files, begins = np.frombuffer(kept(key, read), np.float64), 0
        arms = len(self.manifest.identity.arms)
        for record, units in by_file:
            first = begins
            for shard, (unit, _) in units:
                yield of_files[first:][: self.rows_of_shard[shard]]
                first += unit.stop - unit.start
            begins += record.rows // arms

    def _energies_in(self, record: ShardRecord) -> npt.NDArray[np.float64]:
        """The final energies of the arm's rows of a file."""
        where = f"{self.store.uri}/{record.path}"
        with self._opened(record) as file:
            found = energies_of(file, where, self.arm)
        if len(found) * len(self.manifest.identity.arms) != record.rows:
            raise InputError(f"{where}: lacks rows of an arm; run verify to list all faults, and generate to remake the shard")
        return found

    @contextmanager
    def _opened(self, record: ShardRecord) -> Iterator[pa.NativeFile]:
        """A file, to be decoded while its checksum is taken; those of an object store are kept by `through_cache`.

        What was decoded counts once this has ended.
        """
        if not self.store.cached:
            yield pa.BufferReader(through_cache(record.sha256, partial(read_shard_bytes, self.store, record)))
            return
        stamp = self.store.stamp(record.path)
        if stamp is not None and self._hashed.get(record.path) == stamp:
            file = self.store.open(record.path)
            if file is not None:
                with file:
                    yield file
                return
        with opened_shard(self.store, record) as once:
            yield once.file
        if stamp is not None:
            self._hashed[record.path] = stamp

    def load(self, shard: int) -> Trajectories:
        """Read, check and decode one shard. Raises InputError if it is missing, changed or unsound."""
        item, record = self.shards[shard]
        identity = self.manifest.identity
        with self._opened(record) as file:
            table, faults = check_unit(file, file_of(identity, item), item, identity)
        if faults:
            row, what = faults[0]
            raise InputError(f"{self.store.uri}/{item.path}: {'' if row is None else f'row {row}: '}{what}; "
                             "run verify to list all faults, and generate to remake the shard")
        number = pc.field("trajectory_id")
        table = table.filter((pc.field("arm") == self.arm) & (number >= self.ids.start) & (number < self.ids.stop))
        grid, end_id = identity.grid, identity.teacher.end_id
        if self.row_filter is None:
            return Trajectories.of(table, grid, self.arm, end_id)
        weights = self.row_filter.weights
        return replace(Trajectories.of(table.take(self.row_filter.rows[shard]), grid, self.arm, end_id),
                       row_weights=None if weights is None else weights[shard])

    def final_texts(self) -> Iterator[npt.NDArray[np.int32]]:
        """The tokens at t = 1 of the rows that are read, [n, L] int32, a row group at a time, in order of ids.

        Raises InputError if a file is missing, changed or unsound; what came from it before that does not count.
        """
        for record, units in groupby(range(len(self.shards)), key=lambda shard: self.shards[shard][1]):
            ids, where = np.concatenate([self._ids_in(shard) for shard in units]), f"{self.store.uri}/{record.path}"
            with self._opened(record) as file, shards.readable(where):
                for table in shards.some_columns(file, where, ["trajectory_id", "arm", "tokens"]):
                    table = table.filter(pc.field("arm") == self.arm)
                    chosen = table.filter(np.isin(table.column("trajectory_id").to_numpy(), ids))
                    yield values(chosen, "tokens").reshape(-1, self.manifest.identity.grid.length)

    def _ids_in(self, shard: int) -> Int:
        """The ids of the rows that are read of one shard."""
        unit, _ = self.shards[shard]
        ids = np.arange(max(unit.start, self.ids.start), min(unit.stop, self.ids.stop))
        return ids if self.row_filter is None else ids[self.row_filter.rows[shard]]


class Stream:
    """The rows of one source, shuffled, without end. `number`: its index among the datasets of the run."""

    def __init__(self, source: OpenDataset, number: int, group: int, seed: int) -> None:
        self.source, self.number, self.group, self.seed = source, number, group, seed
        self.rows = int(source.rows_of_shard.sum())
        self._layout = Recent(self._make_layout)
        self._order = Recent(self._make_order)
        self._trajectories = Recent(self._make_trajectories)

    def parts(self, places: Int) -> Iterator[tuple[Trajectories, Int, Int]]:
        """The rows at `places` [M], group by group: (the group, rows of it [m], which of the places they are [m]).

        Together the last cover 0..M-1 once. Of the groups met, HELD are in memory at a time.
        """
        epochs, within = np.divmod(places, self.rows)
        for epoch in np.unique(epochs).tolist():
            groups, bounds = self._layout(epoch)
            index = np.searchsorted(bounds, within, side="right") - 1
            for group in np.unique(index[epochs == epoch]).tolist():
                at = np.flatnonzero((epochs == epoch) & (index == group))
                order = self._order((epoch, group))
                yield self._trajectories(groups[group]), order[within[at] - bounds[group]], at

    def _make_layout(self, epoch: int) -> tuple[list[tuple[int, ...]], Int]:
        """The groups of an epoch, each its shards in order of the plan, and the place where each begins, and the end."""
        shards = permutation(len(self.source.shards), self.seed, SHARDS, self.number, epoch)
        groups = [tuple(np.sort(shards[first : first + self.group]).tolist()) for first in range(0, len(shards), self.group)]
        sizes = [int(self.source.rows_of_shard[list(group)].sum()) for group in groups]
        return groups, np.cumsum([0, *sizes])

    def _make_order(self, key: tuple[int, int]) -> Int:
        epoch, group = key
        bounds = self._layout(epoch)[1]
        return permutation(int(bounds[group + 1] - bounds[group]), self.seed, ROWS, self.number, epoch, group)

    def _make_trajectories(self, group: tuple[int, ...]) -> Trajectories:
        return Trajectories.concatenate([self.source.load(shard) for shard in group])
