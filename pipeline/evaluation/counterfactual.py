"""What other rules would have chosen, from the cached energies of a frozen dataset alone: no teacher, no compass.

At every shaped step whose candidates differ, the log holds the energies E_1..E_K of K independent candidates and the choice.
Noise is counted by candidate, so a run with K' < K has the first K' of them, bit for bit. Hence, at the first scored step of
a trajectory, the state is the same whatever the rule, and every answer here is what another run would have recorded. At later
steps the candidates were drawn along the kept trajectory: an answer there is a one-step answer, given the recorded state,
and says nothing of the states that another rule would have met. Where a rule's choices have all been the kept ones so far,
it is exact still; `exact` gives the share of such steps.

Where tokens were chosen one by one, each position that jumped is a choice of its own, and those of one step were made at the
same time: "first" means all of a trajectory's first step. Their energies are the tokens' shares of the text's, nats per token.
With more than one sweep even those depend on the rule, so there nothing is exact.

K' random ones of the K candidates have the expected minimum (order statistics, x_(1) <= ... <= x_(K))

    E[min] = sum_j x_(j) C(K - j, K' - 1) / C(K, K'),

which averages over all C(K, K') subsets, and so has less noise than the first K' alone.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from math import comb

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.files.tally import bin_of_step
from tsdfm.pipeline.dataset.manifest import opened_shard, read_manifest
from tsdfm.pipeline.dataset.summary import time_bins
from tsdfm.pipeline.evaluation.ratios import Entropy, Floats, Ratio
from tsdfm.pipeline.flow.noise import Noise
from tsdfm.pipeline.flow.shaping import resampled
from tsdfm.pipeline.storage.in_order import Mapper, in_order
from tsdfm.pipeline.storage.store import Store
from tsdfm.schemas.base import InputError
from tsdfm.schemas.choices import choices_of
from tsdfm.schemas.columns import values
from tsdfm.schemas.counterfactual import Counterfactual, Estimate, FewerCandidates, GainBin, OtherRule, OtherTau
from tsdfm.schemas.manifest import Identity, ShardRecord
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.trajectory import Grid

BETAS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)  # asked of 'resample', beside the dataset's own
TAUS = tuple(i / 8 for i in range(1, 8))
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def expected_minimum(energy: npt.ArrayLike, candidates: int) -> Floats:
    """The expected least of K' energies picked from K without replacement: [..., K] -> [...] (module docstring)."""
    ordered = np.sort(np.asarray(energy, np.float64), -1)
    total = ordered.shape[-1]
    weights = [comb(total - j, candidates - 1) / comb(total, candidates) for j in range(1, total + 1)]
    return np.asarray(ordered @ np.array(weights))


def fewer_than(candidates: int) -> list[int]:
    """The K' that are asked about: powers of two below K, and K."""
    return [*(1 << i for i in range((candidates - 1).bit_length())), candidates]


@dataclass(frozen=True)
class ScoredSteps:
    """The n scored choices of R trajectories, in order of (row, step, position).

    row, step [n]; energy [n, K] float64; choice [n]; differ [n]: the first candidate that is not candidate 0;
    uniform [n]: what the run's own 'resample' drew with.
    """

    rows: int
    row: Ints
    step: Ints
    energy: Floats
    choice: Ints
    differ: Ints
    uniform: Floats

    def of(self, choice: Ints) -> Floats:
        """Energies of the chosen candidates: choice [n] int64 in [0, K) -> [n] float64, nats/token."""
        return np.asarray(np.take_along_axis(self.energy, choice[:, None], 1)[:, 0])

    def by_row(self, steps: npt.NDArray[np.generic]) -> Floats:
        """Sums over the scored steps of each trajectory: numbers or booleans [n] -> [R] float64."""
        return np.asarray(np.bincount(self.row, weights=steps.astype(np.float64), minlength=self.rows), np.float64)

    @cached_property
    def _moment(self) -> Ints:
        """Which of all steps of all trajectories that have choices each choice is of, [n], rising from 0."""
        fresh = (np.diff(self.row, prepend=-1) > 0) | (np.diff(self.step, prepend=-1) != 0)
        return np.asarray(np.cumsum(fresh) - 1)

    @property
    def first(self) -> Bools:
        """Mask [n] bool of the choices that are of the first step with one of their trajectory."""
        return np.asarray(self._moment == self._moment[self._start])

    @property
    def _start(self) -> Ints:
        """Of every choice, the first of its trajectory, [n]."""
        return np.searchsorted(self.row, self.row)

    def unmoved(self, changed: Bools) -> Bools:
        """Mask [n] bool of the choices before whose step no choice of their trajectory is in `changed` [n] bool."""
        before = np.concatenate([[0], np.cumsum(changed)])
        return np.asarray(before[np.searchsorted(self._moment, self._moment)] == before[self._start])


def scored_steps(part: pa.Table, identity: Identity, grid: Grid) -> tuple[ScoredSteps, Ints, Ints]:
    """The scored choices of a table of shaped rows; and of all that were met, the row and the step, [m] each."""
    met = choices_of(part, grid)
    at = met.scored
    row, step, position = met.row[at], met.step[at], met.position[at]
    noise = Noise(identity.rollout.seed, torch.from_numpy(values(part, "trajectory_id").astype(np.int64)))
    rows, steps, positions = (torch.from_numpy(each) for each in (row, step, position))
    of_tokens = noise.token_choice(rows, steps, positions.clamp_min(0), identity.shaping.sweeps - 1)
    uniform = torch.where(positions < 0, noise.choice(rows, steps), of_tokens)
    scored = ScoredSteps(met.rows, row, step, met.energy[at], met.choice[at], met.differ[at], uniform.numpy())
    return scored, met.row, met.step


def choices_among(scored: ScoredSteps, candidates: int, identity: Identity) -> Ints:
    """Choices [n] int64: what the run's own rule, and its own noise, choose among the first K' candidates."""
    energy = scored.energy[:, :candidates]
    if identity.shaping.select == "argmin":
        return np.asarray(energy.argmin(1))
    drawn = resampled(torch.from_numpy(energy), identity.shaping.beta, torch.from_numpy(scored.uniform)).numpy()
    return np.where(scored.differ < candidates, drawn, 0)


def counterfactual(store: Store, progress: Progress = unheard, mapper: Mapper = in_order) -> Counterfactual:
    """Ask a finished dataset what else its candidates would have given; of each file that is being read a row group is held.

    `progress` is called after each shard. `mapper`: who reads the files; threads of this process, unless another is given.

    Raises InputError if there is no dataset, a shard is missing, changed or unsound, or nothing was chosen in it.
    """
    manifest = read_manifest(store)
    identity, grid = manifest.identity, manifest.identity.grid
    if grid.shaped_steps and grid.token_steps:
        raise InputError(f"{store.uri}: chose whole candidates at some steps and tokens at others, whose energies have no "
                         "common mean; give a dataset generated with --level sequence or token")
    if "shaped" not in identity.arms or grid.candidates < 2 or not (grid.shaped_steps or grid.token_steps):
        raise InputError(f"{store.uri}: holds no choices among candidates; give a dataset generated with --arm shaped or both, "
                         "--candidates above 1 and --tau below 1")
    total = _Tally(identity, grid)
    for done, tallies in enumerate(mapper(partial(_tallies_of, store, identity), manifest.shards), 1):
        for tally in tallies:
            total.merge(tally)
        progress("reading energies", done, len(manifest.shards))
    if not total.scored:
        raise InputError(f"{store.uri}: at every shaped step all candidates agreed, so nothing was chosen; "
                         "generate with a higher --temperature or fewer --steps")
    return total.result()


def _tallies_of(store: Store, identity: Identity, record: ShardRecord) -> list["_Tally"]:
    """Everything that is asked, of one file: by row group, so that last bits don't depend on how many a file has."""
    grid, where, tallies = identity.grid, f"{store.uri}/{record.path}", list[_Tally]()
    with opened_shard(store, record) as once:
        for table in shards.sound_groups(once.file, where, record.rows, grid):
            tallies.append(_Tally(identity, grid))
            tallies[-1].add(table.filter(pc.equal(table.column("arm"), "shaped")))
    return tallies


def _known(ratio: Ratio | Entropy) -> Estimate:
    estimate = ratio.estimate()
    assert estimate is not None, "a dataset with scored steps has a denominator"
    return estimate


def _merge(mine: object, theirs: object, *names: str) -> None:
    """Add what another tally of a kind has summed up under these names."""
    for name in names:
        getattr(mine, name).merge(getattr(theirs, name))


class _FewerTally:
    """The run's own rule among K' candidates."""

    def __init__(self, candidates: int, identity: Identity) -> None:
        self.candidates, self.identity, self.scored = candidates, identity, 0
        self.first, self.first_any, self.all, self.all_any, self.changed, self.exact = (Ratio() for _ in range(6))
        self.entropy = Entropy(candidates)

    def add(self, scored: ScoredSteps) -> None:
        choice = choices_among(scored, self.candidates, self.identity)
        energy, any_energy = scored.of(choice), expected_minimum(scored.energy, self.candidates)
        one, first, changed = np.ones(len(choice)), scored.first, choice != scored.choice
        self.scored += int(np.count_nonzero(scored.differ < self.candidates))
        for ratio, each, among in (
            (self.first, energy, first), (self.first_any, any_energy, first), (self.all, energy, one),
            (self.all_any, any_energy, one), (self.changed, changed, one), (self.exact, scored.unmoved(changed), one),
        ):
            ratio.add(scored.by_row(each * among), scored.by_row(among))
        counts = np.bincount(scored.row * self.candidates + choice, minlength=scored.rows * self.candidates)
        self.entropy.add(counts.reshape(-1, self.candidates))

    def merge(self, other: "_FewerTally") -> None:
        self.scored += other.scored
        _merge(self, other, "first", "first_any", "all", "all_any", "changed", "exact", "entropy")

    def result(self) -> FewerCandidates:
        lowest = self.identity.shaping.select == "argmin"
        return FewerCandidates(
            candidates=self.candidates, scored=self.scored, first_step=_known(self.first), all_steps=_known(self.all),
            first_step_any=_known(self.first_any) if lowest else None, all_steps_any=_known(self.all_any) if lowest else None,
            changed=_known(self.changed), entropy=_known(self.entropy), exact=_known(self.exact),
        )


class _RuleTally:
    """Argmin (beta None), or resample, among all K."""

    def __init__(self, beta: float | None) -> None:
        self.beta = beta
        self.first, self.all, self.changed, self.entropy = (Ratio() for _ in range(4))

    def _weights(self, energy: Floats) -> Floats:
        """[n, K]: the rule's distribution."""
        if self.beta is None:
            return np.asarray(np.arange(energy.shape[1]) == energy.argmin(1)[:, None], np.float64)
        return np.asarray(torch.softmax(-self.beta * torch.from_numpy(energy), 1).numpy())

    def add(self, scored: ScoredSteps) -> None:
        weights = self._weights(scored.energy)
        expected = (weights * scored.energy).sum(1)
        kept = np.take_along_axis(weights, scored.choice[:, None], 1)[:, 0]
        bits = -(weights * np.log2(weights, where=weights > 0, out=np.zeros_like(weights))).sum(1)
        one = np.ones(len(kept))
        for ratio, each, among in ((self.first, expected, scored.first), (self.all, expected, one),
                                     (self.changed, 1 - kept, one), (self.entropy, bits, one)):
            ratio.add(scored.by_row(each * among), scored.by_row(among))

    def merge(self, other: "_RuleTally") -> None:
        _merge(self, other, "first", "all", "changed", "entropy")

    def result(self) -> OtherRule:
        return OtherRule(
            rule="argmin" if self.beta is None else "resample", beta=self.beta, first_step=_known(self.first),
            all_steps=_known(self.all), changed=_known(self.changed), entropy=_known(self.entropy))


class _TauTally:
    """The kept choices from tau on, candidate 0 before."""

    def __init__(self, tau: float, steps: int) -> None:
        self.tau, self.steps = tau, steps
        self.all, self.changed, self.scored, self.gain = (Ratio() for _ in range(4))

    def add(self, scored: ScoredSteps) -> None:
        shaped = scored.step / self.steps >= self.tau
        choice = np.where(shaped, scored.choice, 0)
        gain, steps = scored.energy[:, 0] - scored.of(scored.choice), scored.by_row(np.ones(len(choice)))
        self.all.add(scored.by_row(scored.of(choice)), steps)
        self.changed.add(scored.by_row(choice != scored.choice), steps)
        self.scored.add(scored.by_row(shaped), steps)
        self.gain.add(scored.by_row(gain * shaped), scored.by_row(gain))

    def merge(self, other: "_TauTally") -> None:
        _merge(self, other, "all", "changed", "scored", "gain")

    def result(self) -> OtherTau:
        return OtherTau(tau=self.tau, all_steps=_known(self.all), changed=_known(self.changed),
                        scored_share=_known(self.scored), gain_share=self.gain.estimate())


class _Tally:
    """Everything that is asked, summed shard by shard."""

    def __init__(self, identity: Identity, grid: Grid) -> None:
        self.identity, self.grid, self.rows, self.scored = identity, grid, 0, 0
        shaping = identity.shaping
        own = {shaping.beta} if shaping.select == "resample" else set()
        self.fewer = [_FewerTally(candidates, identity) for candidates in fewer_than(grid.candidates)]
        self.rules = [_RuleTally(beta) for beta in (None, *sorted({*BETAS, *own}))]
        self.taus = [_TauTally(tau, grid.steps) for tau in TAUS if tau > shaping.tau]
        bins = bin_of_step(grid.steps)
        self.bin_of_step = bins
        self.gains, self.gain_sums = [Ratio() for _ in range(int(bins[-1]) + 1)], np.zeros(int(bins[-1]) + 1)
        self.kept = Entropy(grid.candidates)

    def add(self, part: pa.Table) -> None:
        scored, row, step = scored_steps(part, self.identity, self.grid)
        self.rows, self.scored = self.rows + scored.rows, self.scored + len(scored.row)
        tallies: list[_FewerTally | _RuleTally | _TauTally] = [*self.fewer, *self.rules, *self.taus]
        for tally in tallies:
            tally.add(scored)
        counts = np.bincount(scored.row * self.grid.candidates + scored.choice, minlength=scored.rows * self.grid.candidates)
        self.kept.add(counts.reshape(-1, self.grid.candidates))
        gain, where = scored.energy[:, 0] - scored.of(scored.choice), self.bin_of_step[scored.step]
        for index, ratio in enumerate(self.gains):
            within = scored.by_row(gain * (where == index))
            ratio.add(within, np.bincount(row[self.bin_of_step[step] == index], minlength=scored.rows))
            self.gain_sums[index] += within.sum()

    def merge(self, other: "_Tally") -> None:
        self.rows, self.scored = self.rows + other.rows, self.scored + other.scored
        for kind in ("fewer", "rules", "taus", "gains"):
            for mine, theirs in zip(getattr(self, kind), getattr(other, kind), strict=True):
                mine.merge(theirs)
        self.kept.merge(other.kept)
        self.gain_sums += other.gain_sums

    def result(self) -> Counterfactual:
        shaping = self.identity.shaping
        return Counterfactual(
            trajectories=self.rows, select=shaping.select, beta=shaping.beta if shaping.select == "resample" else None,
            form="residual" if shaping.residual else "plain", candidates=self.grid.candidates, scored=self.scored,
            exact_first_step=self.identity.rollout.solver == "euler" and shaping.sweeps == 1, kept_entropy=_known(self.kept),
            fewer=[tally.result() for tally in self.fewer], rules=[tally.result() for tally in self.rules],
            taus=[tally.result() for tally in self.taus],
            bins=self._bins(),
        )

    def _bins(self) -> list[GainBin]:
        total, estimates = float(self.gain_sums.sum()), [ratio.estimate() for ratio in self.gains]
        shares = [gain / total if total > 0 else None for gain in self.gain_sums.tolist()]
        return [GainBin(times=times, shaped=int(gain.count) if gain else 0, gain=gain, share=share)
                for times, gain, share in zip(time_bins(self.grid.steps), estimates, shares, strict=True)]
