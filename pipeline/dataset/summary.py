"""Look into a finished dataset: a summary of all its rows, and single trajectories by id."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.files.tally import FileTally, Tally, bin_of_step
from tsdfm.pipeline.dataset.jump_log import JumpLog
from tsdfm.pipeline.dataset.manifest import check_sum, opened_shard, plan, read_manifest
from tsdfm.pipeline.storage.in_order import Mapper, in_order
from tsdfm.pipeline.storage.store import Store
from tsdfm.schemas.base import InputError
from tsdfm.schemas.manifest import DatasetManifest, Identity, ShardRecord
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.summary import DatasetSummary, SizeSummary, TimeBin


def time_bins(steps: int) -> list[TimeBin]:
    """The bins of `bin_of_step`, in order."""
    edges = [0, *np.bincount(bin_of_step(steps)).cumsum().tolist()]
    return [TimeBin(t_start=start / steps, t_end=stop / steps, steps=stop - start)
            for start, stop in pairwise(edges)]


def summarise(store: Store, progress: Progress = unheard, mapper: Mapper = in_order) -> DatasetSummary:
    """Summarise a finished dataset; of each file that is being read a row group is held.

    `mapper`: who reads the files; threads of this process, unless another is given.

    Raises InputError if there is no dataset, or a shard is missing, changed or unsound.
    """
    manifest = read_manifest(store)
    identity, total = manifest.identity, Tally(manifest.identity)
    firsts = {item.path: item.start for item in plan(identity)}
    given = [(record, firsts.get(record.path, 0)) for record in manifest.shards]
    for done, tally in enumerate(mapper(partial(tally_of, store, identity), given), 1):
        total.merge(tally)
        progress("summing up shards", done, len(given))
    return summary_of(manifest, total)


def tally_of(store: Store, identity: Identity, given: tuple[ShardRecord, int]) -> FileTally:
    """The sums of one file, which begins with the given trajectory. Raises InputError if it is missing, changed or unsound."""
    record, first = given
    where, tally = f"{store.uri}/{record.path}", FileTally(identity, first)
    with opened_shard(store, record) as once:
        for table in shards.sound_groups(once.file, where, record.rows, identity.grid):
            tally.add(table)
        check_sum(once, record, where)
        tally.columns = shards.column_bytes(once.file, where)
    return tally


def summary_of(manifest: DatasetManifest, total: Tally) -> DatasetSummary:
    """The summary of a dataset whose rows are summed up."""
    identity, grid, totals = manifest.identity, manifest.identity.grid, manifest.totals
    return DatasetSummary(
        trajectories=identity.trajectories, length=grid.length, steps=grid.steps,
        source=identity.teacher.source, select=grid.select, bins=time_bins(grid.steps),
        arms=total.arm_summaries(), pairs=total.pair_summary(), selection=total.selection_summary(),
        size=SizeSummary(
            bytes=totals.bytes, tokens=totals.tokens, bytes_per_token=totals.bytes / totals.tokens,
            column_bytes_per_token={name: size / totals.tokens for name, size in total.columns.items()},
        ),
    )


def read_trajectories(store: Store, manifest: DatasetManifest, ids: Sequence[int]) -> list[JumpLog]:
    """All arms of the given trajectories, in order of id, shaped first.

    Raises InputError for an id that the dataset does not hold (naming the range), and for a faulty shard.
    """
    count = manifest.identity.trajectories
    for number in ids:
        if not 0 <= number < count:
            raise InputError(f"trajectory {number}: {store.uri} holds 0..{count - 1}; give one of those")
    wanted = set(ids)
    by_path = {record.path: record for record in manifest.shards}
    logs = []
    for item in plan(manifest.identity):
        if not any(item.start <= number < item.stop for number in wanted):
            continue
        if item.path not in by_path:
            raise InputError(f"{store.uri}/{item.path}: not in the manifest; run generate again to remake it")
        record = by_path[item.path]
        with opened_shard(store, record) as once:
            for table in shards.sound_groups(once.file, f"{store.uri}/{record.path}", record.rows, manifest.identity.grid):
                numbers = table.column("trajectory_id").to_pylist()
                logs += [shards.to_log(table, row) for row, number in enumerate(numbers) if number in wanted]
    return logs
