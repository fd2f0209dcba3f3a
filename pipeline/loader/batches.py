"""Frozen shards to training batches: the batch of update s is a pure function of (config, seed, s).

The rows of all batches are numbered through: batch s holds rows s B .. (s + 1) B - 1, and data-parallel rank r of W its r-th
part of them. A fixed schedule (mixing.py) says which dataset a row comes from and at which place of that dataset's stream
(streams.py) it is. So nothing need be remembered to resume, ranks and loader workers share no state, and in an epoch of a
dataset every row is read once, whoever reads it.

Every row is trained at a window (t, t + 1/n]: the budget n drawn by weight, t from the times 0, 1/n, ..., (n - 1)/n that
inference with n steps meets, both stratified over the batch.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import gcd

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, IterableDataset

from tsdfm.pipeline.dataset.manifest import digest, read_vocabulary
from tsdfm.pipeline.loader.mixing import Mix, shares_of
from tsdfm.pipeline.loader.streams import POINTS, STRATA, OpenDataset, Stream, permutation, uniform
from tsdfm.pipeline.loader.windows import Batch, Int, join
from tsdfm.pipeline.storage.in_order import Mapper, in_order
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError, WorkError, differences
from tsdfm.schemas.distill import KL_OBJECTIVES, DataConfig
from tsdfm.schemas.manifest import DatasetManifest
from tsdfm.schemas.paths import redacted
from tsdfm.schemas.terms import Clocks, Objective
from tsdfm.schemas.training_record import DataFacts, DatasetFacts

LARGEST_BUDGET = 64  # of those trained when none are named


@dataclass(frozen=True)
class ReaderSettings:
    """What windows a reader makes of rows."""

    objective: Objective = "event"
    beta: float = 64.0  # of 'candidates' and 'tilt'
    budgets: dict[int, float] | None = None  # None: the powers of two that divide the steps of every dataset
    batch_size: int = 32
    seed: int = 0


class Reader:
    """Batches of one run. A process (a rank, or a loader worker) holds at most two decoded groups of each dataset."""

    def __init__(self, sources: list[OpenDataset], data: DataConfig, settings: ReaderSettings) -> None:
        self.data, self.objective, self.beta = data, settings.objective, settings.beta
        self.batch_size, self.seed = settings.batch_size, settings.seed
        self.budget_shares = budgets = settings.budgets or _common_budgets(sources)
        self.budgets: Int = np.array(sorted(budgets))
        self.chances = np.cumsum([budgets[n] for n in sorted(budgets)]) / sum(budgets.values())
        self.sources = sources
        self.streams = [Stream(source, number, data.group, self.seed) for number, source in enumerate(sources)]
        self.mix = Mix(shares_of(data.weights or [stream.rows for stream in self.streams]))

    @classmethod
    def open(cls, data: DataConfig, settings: ReaderSettings, mapper: Mapper = in_order) -> "Reader":
        """Open the datasets and check that they can be mixed and serve this objective and these budgets.

        `mapper`: who reads files, where rows are chosen by their energies.

        Raises InputError, naming the dataset and the field, if not. Shards are read when their turn comes.
        """
        if not data.paths:
            raise InputError("data.paths: no dataset given; name at least one (--data)")
        return cls._checked([OpenDataset.open(path, data, mapper) for path in data.paths], data, settings)

    @classmethod
    def open_held_out(cls, data: DataConfig, settings: ReaderSettings) -> "Reader":
        """As `open`, of the trajectories that `data.held_out` keeps back."""
        return cls._checked([OpenDataset.open_held_out(path, data) for path in data.paths], data, settings)

    @classmethod
    def _checked(cls, sources: list[OpenDataset], data: DataConfig, settings: ReaderSettings) -> "Reader":
        reader = cls(sources, data, settings)
        for source in reader.sources:
            _check_serves(source, reader.objective, reader.budget_shares)
            _check_agrees(source, reader.sources[0], reader.objective)
        return reader

    @property
    def manifests(self) -> list[DatasetManifest]:
        """The manifests of the datasets, in the order of `data.paths`."""
        return [source.manifest for source in self.sources]

    @cached_property
    def clocks(self) -> Clocks:
        """The clocks of all trajectories; 'independent' where the datasets' differ."""
        found = {manifest.identity.rollout.clocks for manifest in self.manifests}
        return found.pop() or "independent" if len(found) == 1 else "independent"

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer, which all datasets share. Raises InputError if its file is missing or changed."""
        return read_vocabulary(self.sources[0].store, self.sources[0].manifest)

    @property
    def rows_per_epoch(self) -> int:
        """The number of rows that are read of all datasets together, each counted once."""
        return sum(stream.rows for stream in self.streams)

    def facts(self) -> DataFacts:
        """What was read, for a student's training.json: pinned places, identities, rows and shares."""
        datasets = [
            DatasetFacts(path=redacted(source.path), uri=source.store.uri,
                         identity=digest(source.manifest.identity), rows=stream.rows, share=share,
                         prompts=source.manifest.identity.prompts, blocks=source.manifest.identity.blocks)
            for source, stream, share in zip(self.sources, self.streams, self.mix.shares.tolist(), strict=True)
        ]
        return DataFacts(datasets=datasets, arm=self.data.arm, seed=self.seed)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """Rank `rank`'s part of the batch of update `step`: rows rank B/W .. (rank + 1) B/W - 1 of it.

        Raises InputError if a shard is missing, changed or unsound.
        """
        size, rest = divmod(self.batch_size, world)
        if rest or not 0 <= rank < world:
            raise ValueError(f"a batch of {self.batch_size} has no part {rank} of {world}")
        part = slice(rank * size, (rank + 1) * size)
        budget, window = (drawn[part] for drawn in self._windows(step))
        owner, place = self.mix.rows(step * self.batch_size + np.arange(part.start, part.stop))
        batches, order = [], []
        for number, stream in enumerate(self.streams):
            mine = np.flatnonzero(owner == number)
            for trajectories, rows, at in stream.parts(place[mine]):
                index = mine[at]
                width = trajectories.steps // budget[index]
                start = window[index] * width
                batches.append(trajectories.window(rows, start, start + width, self.objective, self.beta))
                order.append(index)
        return join(batches, np.concatenate(order))

    def batches(
        self, start_step: int, stop_step: int, rank: int = 0, world: int = 1, loader_workers: int = 0
    ) -> Iterator[Batch]:
        """The batches of updates start_step..stop_step-1, in order; `loader_workers` processes build them ahead.

        Worker w of W builds every W-th batch, and decodes every group for itself. Raises what `batch` does, and WorkError if a
        worker is killed.
        """
        if not loader_workers:
            for step in range(start_step, stop_step):
                yield self.batch(step, rank, world)
            return
        # The clients of object stores and of the Hub hold threads and sockets that a fork breaks.
        local = all(source.store.local is not None for source in self.sources)
        loader = DataLoader(
            _Updates(self, range(start_step, stop_step), rank, world), batch_size=None, num_workers=loader_workers,
            multiprocessing_context="fork" if local else "spawn", worker_init_fn=_settle,
            generator=torch.Generator(),  # else the loader draws a number from the generator that dropout uses
        )
        items = iter(loader)
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except RuntimeError as error:
                if "exited unexpectedly" not in str(error):
                    raise
                raise WorkError("a loader worker was killed, perhaps for want of memory; lower data.group or "
                                "data.loader_workers and resume") from None
            if isinstance(item, Exception):
                raise item
            yield item

    def _windows(self, step: int) -> tuple[Int, Int]:
        """Of every row of the whole batch: its budget n, and j of its window (j/n, (j + 1)/n]; both [B] int64.

        Both are stratified: the b-th part of [0, 1) serves one row, in random order.
        """
        size = self.batch_size
        u, v = (
            (permutation(size, self.seed, STRATA, step, which) + uniform(size, self.seed, POINTS, step, which)) / size
            for which in (0, 1)
        )
        # (size - 1 + u) / size may round up to 1
        budget = self.budgets[np.minimum(np.searchsorted(self.chances, u, side="right"), len(self.budgets) - 1)]
        return budget, np.minimum((v * budget).astype(np.int64), budget - 1)


class _Updates(IterableDataset[Batch | Exception]):
    """The batches of a run of updates; each loader worker yields those that are its turn."""

    def __init__(self, reader: Reader, steps: range, rank: int, world: int) -> None:
        self.reader, self.steps, self.rank, self.world = reader, steps, rank, world

    def __iter__(self) -> Iterator[Batch | Exception]:
        worker = torch.utils.data.get_worker_info()
        assert worker is not None  # only loader workers iterate
        for step in self.steps[worker.id :: worker.num_workers]:
            try:
                yield self.reader.batch(step, self.rank, self.world)
            except (InputError, WorkError) as error:  # as a value: the loader would wrap its one line in a traceback
                yield error
                return


def _settle(worker: int) -> None:
    """A loader worker: one thread, and an interrupt is the main process's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    pa.set_cpu_count(1)


def _common_budgets(sources: list[OpenDataset]) -> dict[int, float]:
    """The powers of two up to LARGEST_BUDGET that divide the steps of every dataset, equally often."""
    steps = gcd(*(source.manifest.identity.rollout.steps for source in sources))
    return {n: 1.0 for n in (1 << power for power in range(LARGEST_BUDGET.bit_length())) if steps % n == 0}


def _check_serves(source: OpenDataset, objective: Objective, budgets: dict[int, float]) -> None:
    rollout = source.manifest.identity.rollout
    unfit = [n for n in sorted(budgets) if rollout.steps % n]
    if unfit:
        fitting = ", ".join(str(n) for n in range(1, rollout.steps + 1) if rollout.steps % n == 0)
        raise InputError(f"{source.store.uri}: budgets: {unfit[0]} does not divide the N = {rollout.steps} steps "
                         f"of its rollout; give budgets among {fitting}")
    if objective == "tilt":
        _check_tilt(source)
    if objective in KL_OBJECTIVES and not rollout.top_k:
        raise InputError(f"{source.store.uri}: holds no top-k, which objective '{objective}' needs; "
                         "generate it with --top-k 16, or choose another objective")


def _check_tilt(source: OpenDataset) -> None:
    grid = source.manifest.identity.grid
    if not grid.logprobs:
        raise InputError(f"{source.store.uri}: holds no log-probabilities of candidates, which objective 'tilt' needs; "
                         "generate it with --logprobs, or choose another objective")
    if source.arm == "blind" or grid.candidates < 2 or not (grid.shaped_steps or grid.token_steps):
        raise InputError(f"{source.store.uri}: holds no choices among candidates, which objective 'tilt' learns; give data.arm "
                         "'shaped' and a dataset of several candidates, or choose another objective")


def _check_agrees(source: OpenDataset, first: OpenDataset, objective: Objective) -> None:
    """Refuse to mix two datasets whose rows do not mean the same."""

    def meaning(manifest: DatasetManifest) -> dict[str, object]:
        identity = manifest.identity
        return {
            "tokenizer": identity.tokenizer,
            "rollout": identity.rollout.model_dump(include={"length"} | ({"top_k"} if objective in KL_OBJECTIVES else set())),
            "teacher": identity.teacher.model_dump(include={"source", "vocab_size", "mask_id", "kappa_exponent", "end_id"}),
            "shaping": identity.shaping.model_dump(include={"candidates"} if objective == "tilt" else set()),
        }

    differing = differences(meaning(first.manifest), meaning(source.manifest))
    if differing:
        raise InputError(f"{source.store.uri}: can't be mixed with {first.store.uri}; give datasets that agree in: "
                         + "; ".join(differing))
