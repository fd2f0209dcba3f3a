"""What a summary sums up of rows: of one file by itself, wherever it is read, and then of all files, merged in their order."""

from collections import Counter
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tsdfm.pipeline.text.ends.written import written_of
from tsdfm.pipeline.text.metrics import distinct_n, entropies
from tsdfm.schemas.choices import choices_of
from tsdfm.schemas.columns import ragged, values
from tsdfm.schemas.manifest import Identity
from tsdfm.schemas.summary import ArmSummary, Choices, PairSummary, SelectionSummary, Spread
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
        mean = float(batch.mean())
        self.merge(Moments(batch.size, mean, float(np.square(batch - mean).sum())))

    def merge(self, other: "Moments") -> None:
        """Add what another has counted."""
        if not other.count:
            return
        total, delta = self.count + other.count, other.mean - self.mean
        self.squares += other.squares + delta * delta * self.count * other.count / total
        self.mean = self.mean + delta * other.count / total if self.count else other.mean
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


class Tally:
    """Sums over the rows of a dataset, or over a part of them that begins with the trajectory `first`."""

    def __init__(self, identity: Identity, first: int = 0) -> None:
        grid = identity.grid
        self.arms = {arm: _ArmTally(grid, identity.teacher.end_id, max(0, DISTINCT_ROWS - first)) for arm in identity.arms}
        self.columns = Counter[str]()  # compressed bytes
        self._choices = _ChoiceTally(grid) if _chose(identity) else None
        self._pairs = _PairTally() if len(self.arms) == 2 and grid.compass else None

    def add(self, table: pa.Table) -> None:
        """Add rows that hold the invariants, of all arms."""
        parts = {arm: table.filter(pc.equal(table.column("arm"), arm)) for arm in self.arms}
        for arm, part in parts.items():
            self.arms[arm].add(part)
        if self._choices is not None:
            self._choices.add(parts["shaped"])
        if self._pairs is not None:
            self._pairs.add(parts["shaped"], parts["blind"])

    def merge(self, file: "FileTally") -> None:
        """Add the rows of the next file."""
        for part in file.parts:
            self._merge(part)
        self.columns.update(file.columns)

    def _merge(self, other: "Tally") -> None:
        for arm, theirs in other.arms.items():
            self.arms[arm].merge(theirs)
        if self._choices is not None and other._choices is not None:
            self._choices.merge(other._choices)
        if self._pairs is not None and other._pairs is not None:
            self._pairs.merge(other._pairs)

    def arm_summaries(self) -> list[ArmSummary]:
        """The figures of each arm."""
        return [tally.summary(arm) for arm, tally in self.arms.items()]

    def pair_summary(self) -> PairSummary | None:
        """How the arms of a trajectory differ; None where there is nothing to compare."""
        return None if self._pairs is None else self._pairs.summary()

    def selection_summary(self) -> SelectionSummary | None:
        """What the compass chose; None where nothing was chosen."""
        return None if self._choices is None else self._choices.summary()


def _chose(identity: Identity) -> bool:
    grid = identity.grid
    return "shaped" in identity.arms and grid.candidates > 1 and bool(grid.shaped_steps or grid.token_steps)


class FileTally:
    """Sums over the rows of one file, from the trajectory `first` on. Each row group's are kept apart until all are merged.

    So the last bits of a summary don't depend on how many units of work a file holds.
    """

    def __init__(self, identity: Identity, first: int) -> None:
        self.parts: list[Tally] = []
        self.columns: dict[str, int] = {}  # compressed bytes, which whoever has the file adds
        self._identity, self._next = identity, first

    def add(self, table: pa.Table) -> None:
        """Add the next row group, whose rows hold the invariants."""
        tally = Tally(self._identity, self._next)
        tally.add(table)
        self.parts.append(tally)
        self._next += table.num_rows // len(self._identity.arms)


def _spread(moments: Moments) -> Spread:
    return Spread(count=moments.count, mean=moments.mean, deviation=moments.deviation)


class _ArmTally:
    """Energies, events and token statistics of one arm; `end_id`: of texts that count up to their end alone."""

    def __init__(self, grid: Grid, end_id: int | None, room: int) -> None:
        self.grid, self.end_id, self.bin_of_step = grid, end_id, bin_of_step(grid.steps)
        self.energy, self.events, self.entropy, self.fixed = Moments(), Moments(), Moments(), Moments()
        self.jumps = np.zeros(self.bin_of_step[-1] + 1, dtype=np.int64)
        self.tokens: list[npt.NDArray[np.generic]] = []  # the first `room` rows, up to L each
        self.room = room

    def add(self, part: pa.Table) -> None:
        if self.grid.compass:
            self.energy.add(values(part, "final_energy"))
        if self.grid.fixed:
            self.fixed.add(ragged(part, "fixed_positions").sizes)
        steps = ragged(part, "event_step")
        self.events.add(steps.sizes)
        self.jumps += np.bincount(self.bin_of_step[steps.values], minlength=len(self.jumps))
        tokens = values(part, "tokens").reshape(-1, self.grid.length)  # [rows, L]
        written = tokens if self.end_id is None else written_of(tokens, self.end_id)
        self.entropy.add(entropies(written))
        kept = written[: self.room - len(self.tokens)]
        self.tokens.extend(row.copy() for row in kept)  # a view would hold the whole table

    def merge(self, other: "_ArmTally") -> None:
        for mine, theirs in ((self.energy, other.energy), (self.events, other.events), (self.entropy, other.entropy),
                             (self.fixed, other.fixed)):
            mine.merge(theirs)
        self.jumps += other.jumps
        self.tokens.extend(other.tokens[: self.room - len(self.tokens)])

    def _distinct(self, n: int) -> float | None:
        return distinct_n(self.tokens, n) if n <= max(map(len, self.tokens)) else None

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

    def merge(self, other: "_PairTally") -> None:
        self.difference.merge(other.difference)
        self.lower, self.equal = self.lower + other.lower, self.equal + other.equal

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
        # sums: [5, bins]: shaped, scored, kept candidate 0, energy of candidate 0, energy of the chosen
        self.sums = np.zeros((5, self.bin_of_step[-1] + 1))

    def add(self, part: pa.Table) -> None:
        found = choices_of(part, self.grid)
        scored = found.scored
        chosen = np.take_along_axis(found.energy, found.choice[:, None], 1)[:, 0]
        parts = (np.ones(len(scored)), scored, scored & (found.choice == 0),
                 np.where(scored, found.energy[:, 0], 0), np.where(scored, chosen, 0))
        for sums, each in zip(self.sums, parts, strict=True):
            sums += np.bincount(self.bin_of_step[found.step], weights=each, minlength=len(sums))

    def merge(self, other: "_ChoiceTally") -> None:
        self.sums += other.sums

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
