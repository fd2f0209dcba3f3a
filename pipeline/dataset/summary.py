"""Look into a finished dataset: a summary streamed over its shards, and single trajectories by id."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.jump_log import JumpLog
from tsdfm.pipeline.dataset.manifest import opened_shard, plan, read_groups, read_manifest
from tsdfm.pipeline.storage.store import Store
from tsdfm.pipeline.text.metrics import distinct_n, unigram_entropy
from tsdfm.schemas.base import InputError
from tsdfm.schemas.choices import choices_of
from tsdfm.schemas.columns import ragged, values
from tsdfm.schemas.manifest import DatasetManifest
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.summary import (
    ArmSummary,
    Choices,
    DatasetSummary,
    PairSummary,
    SelectionSummary,
    SizeSummary,
    Spread,
    TimeBin,
)
from tsdfm.schemas.terms import Arm
from tsdfm.schemas.trajectory import Grid

MAX_BINS = 16
DISTINCT_ROWS = 4096  # distinct-n holds all its n-grams, and compares only over equal amounts of text


@dataclass
class Moments:
    """Running count, mean and squared deviations; batches merge without cancellation (Chan et al. 1983)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: npt.ArrayLike) -> None:
        """Add a batch of finite numbers, any shape."""
        batch = np.asarray(values, dtype=np.float64)
        if not batch.size:
            return
        total, mean = self.count + batch.size, float(batch.mean())
        delta = mean - self.mean
        self.squares += float(np.square(batch - mean).sum()) + delta * delta * self.count * batch.size / total
        self.mean += delta * batch.size / total
        self.count = total

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation (divisor count - 1); None for fewer than two values."""
        return sqrt(self.squares / (self.count - 1)) if self.count > 1 else None

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean of independent values; None for fewer than two."""
        return None if self.deviation is None else self.deviation / sqrt(self.count)


def bin_of_step(steps: int) -> npt.NDArray[np.int64]:
    """Fold N steps into at most MAX_BINS bins of nearly equal width: [N], rising from 0 without gaps."""
    return np.arange(steps) * min(MAX_BINS, steps) // steps


def time_bins(steps: int) -> list[TimeBin]:
    """The bins of `bin_of_step`, in order."""
    edges = [0, *np.bincount(bin_of_step(steps)).cumsum().tolist()]
    return [TimeBin(t_start=start / steps, t_end=stop / steps, steps=stop - start)
            for start, stop in pairwise(edges)]


def summarise(store: Store, progress: Progress = unheard) -> DatasetSummary:
    """Summarise a finished dataset, one row group at a time.

    Raises InputError if there is no dataset, or a shard is missing, changed or unsound.
    """
    manifest = read_manifest(store)
    identity, grid = manifest.identity, manifest.identity.grid
    arms = {arm: _ArmTally(grid) for arm in identity.arms}
    pairs, choices, columns = _PairTally(), _ChoiceTally(grid), Counter[str]()
    shaped_arm = "shaped" in arms and grid.candidates > 1 and bool(grid.shaped_steps or grid.token_steps)
    for done, record in enumerate(manifest.shards):
        with opened_shard(store, record) as file:
            where = f"{store.uri}/{record.path}"
            for table in shards.sound_groups(file, where, grid):
                parts = {arm: table.filter(pc.equal(table.column("arm"), arm)) for arm in arms}
                for arm, part in parts.items():
                    arms[arm].add(part)
                if shaped_arm:
                    choices.add(parts["shaped"])
                if len(parts) == 2 and grid.compass:
                    pairs.add(parts["shaped"], parts["blind"])
            columns.update(shards.column_bytes(file, where))
        progress("summing up shards", done + 1, len(manifest.shards))
    totals = manifest.totals
    return DatasetSummary(
        trajectories=identity.trajectories, length=grid.length, steps=grid.steps,
        source=identity.teacher.source, select=grid.select, bins=time_bins(grid.steps),
        arms=[tally.summary(arm) for arm, tally in arms.items()], pairs=pairs.summary(),
        selection=choices.summary() if shaped_arm else None,
        size=SizeSummary(
            bytes=totals.bytes, tokens=totals.tokens, bytes_per_token=totals.bytes / totals.tokens,
            column_bytes_per_token={name: size / totals.tokens for name, size in columns.items()},
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
        for table in read_groups(store, by_path[item.path], manifest.identity):
            numbers = table.column("trajectory_id").to_pylist()
            logs += [shards.to_log(table, row) for row, number in enumerate(numbers) if number in wanted]
    return logs


def _spread(moments: Moments) -> Spread:
    return Spread(count=moments.count, mean=moments.mean, deviation=moments.deviation)


class _ArmTally:
    """Energies, events and token statistics of one arm."""

    def __init__(self, grid: Grid) -> None:
        self.grid, self.bin_of_step = grid, bin_of_step(grid.steps)
        self.energy, self.events, self.entropy, self.fixed = Moments(), Moments(), Moments(), Moments()
        self.jumps = np.zeros(self.bin_of_step[-1] + 1, dtype=np.int64)
        self.tokens: list[npt.NDArray[np.generic]] = []  # the first DISTINCT_ROWS rows, [L] each

    def add(self, part: pa.Table) -> None:
        if self.grid.compass:
            self.energy.add(values(part, "final_energy"))
        if self.grid.fixed:
            self.fixed.add(ragged(part, "fixed_positions").sizes)
        steps = ragged(part, "event_step")
        self.events.add(steps.sizes)
        self.jumps += np.bincount(self.bin_of_step[steps.values], minlength=len(self.jumps))
        tokens = values(part, "tokens").reshape(-1, self.grid.length)  # [rows, L]
        self.entropy.add(unigram_entropy(tokens))
        self.tokens.extend(tokens[: DISTINCT_ROWS - len(self.tokens)])

    def _distinct(self, n: int) -> float | None:
        return distinct_n(self.tokens, n) if n <= self.grid.length else None

    def summary(self, arm: Arm) -> ArmSummary:
        visits = self.events.count * np.bincount(self.bin_of_step)  # [bins], trajectories times steps
        return ArmSummary(
            arm=arm, final_energy=_spread(self.energy) if self.grid.compass else None,
            events=_spread(self.events), fixed=_spread(self.fixed) if self.grid.fixed else None,
            jumps_per_step=(self.jumps / visits).tolist(),
            entropy=_spread(self.entropy),
            distinct_1=distinct_n(self.tokens, 1), distinct_2=self._distinct(2), distinct_4=self._distinct(4),
            distinct_rows=len(self.tokens),
        )


class _PairTally:
    """Final energies of the two arms of a trajectory, which stand in one shard."""

    def __init__(self) -> None:
        self.difference, self.lower, self.equal = Moments(), 0, 0

    def add(self, shaped: pa.Table, blind: pa.Table) -> None:
        _, at_shaped, at_blind = np.intersect1d(
            values(shaped, "trajectory_id"), values(blind, "trajectory_id"), return_indices=True)
        energies = [values(part, "final_energy").astype(np.float64) for part in (shaped, blind)]
        difference = energies[0][at_shaped] - energies[1][at_blind]
        self.difference.add(difference)
        self.lower += int(np.count_nonzero(difference < 0))
        self.equal += int(np.count_nonzero(difference == 0))

    def summary(self) -> PairSummary | None:
        pairs = self.difference.count
        if not pairs:
            return None
        return PairSummary(
            pairs=pairs, mean_difference=self.difference.mean, standard_error=self.difference.standard_error,
            share_lower=self.lower / pairs, share_equal=self.equal / pairs,
        )


class _ChoiceTally:
    """The compass's choices, summed per bin of t."""

    def __init__(self, grid: Grid) -> None:
        self.grid, self.bin_of_step = grid, bin_of_step(grid.steps)
        # sums: [5, bins]: choices, scored, kept candidate 0, energy of candidate 0, energy of the chosen
        self.sums = np.zeros((5, self.bin_of_step[-1] + 1))

    def add(self, part: pa.Table) -> None:
        found = choices_of(part, self.grid)
        scored = found.scored
        chosen = np.take_along_axis(found.energy, found.choice[:, None], 1)[:, 0]
        parts = (np.ones(len(scored)), scored, scored & (found.choice == 0),
                 np.where(scored, found.energy[:, 0], 0), np.where(scored, chosen, 0))
        for sums, each in zip(self.sums, parts, strict=True):
            sums += np.bincount(self.bin_of_step[found.step], weights=each, minlength=len(sums))

    def summary(self) -> SelectionSummary:
        grid = self.grid
        total = _choices(self.sums.sum(1))
        if grid.shaped_steps and grid.token_steps:  # energies of whole texts and of single tokens have no common mean
            total = total.model_copy(update={"blind_energy": None, "chosen_energy": None})
        return SelectionSummary(candidates=grid.candidates, total=total, bins=[_choices(sums) for sums in self.sums.T])


def _choices(sums: npt.NDArray[np.float64]) -> Choices:
    """The five sums of `_ChoiceTally` as means."""
    shaped, scored, kept, blind, chosen = sums.tolist()
    return Choices(
        shaped=int(shaped), scored=int(scored),
        agreed_share=1 - scored / shaped if shaped else None,
        kept_blind_share=kept / scored if scored else None,
        blind_energy=blind / scored if scored else None,
        chosen_energy=chosen / scored if scored else None,
        gain=(blind - chosen) / scored if scored else None,
    )
