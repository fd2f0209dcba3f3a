"""The updates of a student: batches of windows in parts over data-parallel processes, and how far each step budget is.

Every number is a function of (config, data), so that a run that was killed ends in the same bits as one that was not, and W
data-parallel processes take the updates of one, up to floating-point error: the loss is the mean over the target positions of
the whole batch, whatever their shares are. (Dropout, if a model has it, is drawn by each process and for each part of a batch:
then they agree in law only.)
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tsdfm.pipeline.flow.mixture_path import MixturePath, stratified_times
from tsdfm.pipeline.loader.batches import Reader
from tsdfm.pipeline.loader.windows import Batch
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import ModelFolder
from tsdfm.pipeline.models.student import student_of, with_blocks
from tsdfm.pipeline.text.corpus import Corpus, prepare
from tsdfm.pipeline.training.objectives import StudentLoss
from tsdfm.pipeline.training.token_windows import TokenWindows
from tsdfm.pipeline.training.trainer import Part, Report, Trainer, seeded
from tsdfm.schemas.distill import DistillConfig


@dataclass(frozen=True)
class Place:
    """This process among the data-parallel ones, and its device."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def alone(cls) -> "Place":
        """The only process, on a GPU if there is one."""
        return cls(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@dataclass(frozen=True)
class Start:
    """What a student is made from: its config, the opened data, the opened weights, and what its bits depend on."""

    config: DistillConfig
    reader: Reader
    weights: ModelFolder[Denoiser]
    identity: dict[str, Any]

    @cached_property
    def real(self) -> Corpus | None:
        """The real text that is mixed in, read when it is first asked for; None if there is none. Raises InputError."""
        words = self.weights.vocabulary
        return prepare(self.config.real.corpus, words, words.size) if self.config.real.weight else None


def train_student(start: Start, folder: Path, place: Place, report: Report) -> Denoiser | None:
    """Train a student; training state and TensorBoard logs live in `folder`, from which a rerun resumes.

    Args:
        start: of this process; its config's `workers` must be the world size.
        folder: shared by all processes; only rank 0 writes.
        place: this process. With world > 1, torch.distributed must be initialised.
        report: called on rank 0 only; returning True saves and stops all processes.

    Returns:
        The student with its EMA weights, or None if `report` asked to stop.

    Raises:
        InputError: `folder` holds a run of another config. WorkError: the loss is not finite.
    """
    config, reader, teacher = start.config, start.reader, start.weights.network
    if config.init_blocks is not None:
        with seeded(config.optim.seed):  # which draws weights that are then replaced
            teacher = with_blocks(teacher, config.init_blocks)
    with seeded(config.optim.seed):  # weights that only a student has
        student = student_of(teacher).to(place.device)
    real = None if start.real is None else _RealText(start, start.real, place)
    identity = dict(start.identity)
    if real is not None:
        identity["corpus_sha256"] = real.sha256
    trainer = Trainer(student, config.optim, folder, identity, writes=place.rank == 0)
    trainer.resume()
    module: nn.Module = StudentLoss(student, config.objective)
    if place.world > 1:
        module = nn.parallel.DistributedDataParallel(module)
    gauge = _Gauge(reader.budget_shares, place)
    batches = reader.batches(trainer.step, config.optim.steps, place.rank, place.world, config.data.loader_workers)

    def parts(step: int, generator: torch.Generator) -> Iterator[Part]:
        yield from _parts(module, next(batches).to(place.device), config.micro_batches, place, gauge.add)
        if real is not None:
            text = real.batch(step, generator).to(place.device)
            yield from _parts(module, text, config.micro_batches, place, weight=config.real.weight)

    def report_on_first(step: int, scalars: dict[str, float]) -> bool:
        stop = bool(report(step, scalars)) if place.rank == 0 else False
        return bool(_summed(torch.tensor([float(stop)]), place)[0])

    def mean(value: float) -> float:
        return float(_summed(torch.tensor([value], dtype=torch.float64), place)[0]) / place.world

    return student if trainer.run(parts, report_on_first, gauge.read, mean) else None


def _parts(
    module: nn.Module, batch: Batch, parts: int, place: Place, seen: Callable[[Batch, Tensor], None] = lambda *_: None,
    weight: float = 1.0,
) -> Iterator[Part]:
    """The parts of this process's share of a batch; `seen` gets the rows of each and their nats [b, L].

    The losses summed over parts and averaged over processes are `weight` times the mean nats of the whole batch's target
    positions, each times the weight of its row. As row weights are 1 on average over a dataset, batches are not normalised one
    by one: then the expected loss is that of the weighted dataset.
    """
    total = float(_summed((batch.target >= 0).sum().cpu().double()[None], place)[0])
    size = len(batch.t) // parts

    def loss(rows: Batch) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=place.device.type == "cuda"):
            nats: Tensor = module(rows)
        seen(rows, nats.detach())
        weighted: Tensor = nats if rows.row_weights is None else nats * rows.row_weights[:, None]
        found: Tensor = weight * (weighted.sum() * (place.world / max(total, 1.0)))
        return found

    for part in range(parts):
        rows = batch.rows(slice(part * size, (part + 1) * size))
        alone = isinstance(module, nn.parallel.DistributedDataParallel) and part < parts - 1
        sync = cast(nn.parallel.DistributedDataParallel, module).no_sync if alone else nullcontext
        yield Part(partial(loss, rows), sync)


def _summed(value: Tensor, place: Place) -> Tensor:
    """The sum of a small CPU tensor over all processes."""
    if place.world == 1:
        return value
    there = value.to(place.device)
    dist.all_reduce(there)
    return there.cpu()


class _Gauge:
    """Since the last reading: the mean loss per target position of every step budget seen."""

    def __init__(self, budgets: Iterable[int], place: Place) -> None:
        self.budgets, self.place = torch.tensor(sorted(budgets)), place
        self.sums = torch.zeros(len(self.budgets), 2, dtype=torch.float64)  # (nats, targets) of each budget

    def add(self, batch: Batch, nats: Tensor) -> None:
        """Count the nats [B, L] of a batch among those of its budgets."""
        bucket = torch.searchsorted(self.budgets, (1 / batch.dt).round().long().cpu())
        both = torch.stack([nats.sum(1), (batch.target >= 0).sum(1)], 1).double().cpu()
        self.sums.index_add_(0, bucket, both)

    def read(self) -> dict[str, float]:
        """{'loss/8': nats, ...} over all processes, and start anew."""
        sums = _summed(self.sums, self.place)
        self.sums = torch.zeros_like(self.sums)
        return {f"loss/{n}": nats / count
                for n, (nats, count) in zip(self.budgets.tolist(), sums.tolist(), strict=True) if count}


class _RealText:
    """Windows of real text, noised along the path: the denoising loss that a student may be mixed with."""

    def __init__(self, start: Start, corpus: Corpus, place: Place) -> None:
        config, reader, model = start.config, start.reader, start.weights.network.config
        self.sha256 = corpus.facts.sha256
        length = reader.manifests[0].identity.rollout.length or model.length
        self.windows = TokenWindows(corpus.train, length, config.optim.batch_size, config.optim.seed)
        self.path, self.place = MixturePath.of(model), place
        self.budgets = torch.tensor([float(n) for n in reader.budget_shares])
        self.weights = torch.tensor(list(reader.budget_shares.values()))

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        """This process's share of the windows of update `step`."""
        x_1 = self.windows.batch(step)
        n = self.budgets[torch.multinomial(self.weights, len(x_1), replacement=True, generator=generator)]
        t = torch.floor(stratified_times(len(x_1), generator) * n) / n
        x_t = self.path.sample(x_1, t, generator)
        target = x_1 if self.path.mask_id is None else torch.where(x_t == self.path.mask_id, x_1, -1)
        share = len(x_1) // self.place.world
        whole = Batch(x_t=x_t, t=t, dt=1 / n, target=target, candidates=None, weights=None, topk_ids=None, topk_logprobs=None)
        return whole.rows(slice(self.place.rank * share, (self.place.rank + 1) * share))
