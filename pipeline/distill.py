"""Distil a student from frozen shards: no teacher process, no compass.

The student is its teacher's copy with a step embedding (`denoiser.student_of`), fitted by `objectives.StudentLoss` to the
batches of `reader.Reader`. Every number is a function of (config, data), so that a run that was killed ends in the same bits
as one that was not, and W data-parallel processes take the updates of one, up to floating-point error: the loss is the mean
over the target positions of the whole batch, whatever their shares are. (Dropout, if a model has it, is drawn by each process
and for each part of a batch: then they agree in law only.)
"""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tsdfm.pipeline.checkpoint import Checkpoint, load_denoiser
from tsdfm.pipeline.dataset import digest
from tsdfm.pipeline.denoiser import Denoiser, student_of
from tsdfm.pipeline.models import teacher_folder
from tsdfm.pipeline.objectives import StudentLoss
from tsdfm.pipeline.paths import MixturePath, stratified_times
from tsdfm.pipeline.pretrain import prepare
from tsdfm.pipeline.reader import Reader
from tsdfm.pipeline.training import Report, TokenWindows, Trainer
from tsdfm.pipeline.truncate import with_blocks
from tsdfm.pipeline.windows import Batch
from tsdfm.schemas.base import InputError
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.manifest import DatasetManifest

# What may differ between a run and its resumption: where things lie, and how the work is divided.
MOVABLE: dict[str, Any] = {"data": {"paths", "loader_workers"}, "init": True, "workers": True, "address": True}


@dataclass(frozen=True)
class Place:
    """This process among the data-parallel ones, and its device."""

    rank: int
    world: int
    device: torch.device


def open_reader(config: DistillConfig) -> Reader:
    """The reader of a config's datasets. Raises InputError."""
    if not config.data.paths:
        raise InputError("--data: no dataset given; give --data OUT (a folder that generate wrote), or data.paths")
    return Reader.open(config.data, objective=config.objective, beta=config.beta, budgets=config.budgets,
                       batch_size=config.optim.batch_size, seed=config.optim.seed)


def open_init(config: DistillConfig, manifest: DatasetManifest) -> Checkpoint:
    """The denoiser to start from: `init`, or the manifest's teacher. Raises InputError if it doesn't fit the data."""
    identity = manifest.identity
    if config.init is not None:
        opened = load_denoiser(teacher_folder(config.init, identity.teacher.source))[1]
    else:
        opened = _teacher_of(manifest)
    folder = opened.path
    facts, mine = identity.teacher, _denoiser(opened).config
    pairs = [("source", mine.source, facts.source), ("vocab_size", mine.vocab_size, facts.vocab_size),
             ("mask_id", mine.mask_id, facts.mask_id), ("kappa_exponent", mine.kappa_exponent, facts.kappa_exponent),
             ("tokenizer", opened.vocabulary.fingerprint, identity.tokenizer)]
    for name, found, wanted in pairs:
        if found != wanted:
            raise InputError(f"--init {folder}: its {name} ({found!s:.16}) is not the dataset's ({wanted!s:.16}); "
                             "give the dataset's teacher, or a student of it")
    if config.init_blocks is not None and config.init_blocks > mine.n_blocks:
        raise InputError(f"init_blocks: {config.init_blocks} is more than the {mine.n_blocks} blocks of {folder}; "
                         "give at most that")
    if identity.rollout.length is not None and mine.length < identity.rollout.length:
        raise InputError(f"--init {folder}: takes {mine.length} tokens, the dataset has {identity.rollout.length}; "
                         "give a longer one")
    return opened


def _denoiser(opened: Checkpoint) -> Denoiser:
    assert isinstance(opened.network, Denoiser)
    return opened.network


def _teacher_of(manifest: DatasetManifest) -> Checkpoint:
    wanted = manifest.identity.teacher
    named = manifest.teacher
    for folder in [teacher_folder(name, wanted.source) for name in dict.fromkeys(["embedded", named or "embedded"])]:
        with suppress(InputError):  # what else may lie there by now is not asked for
            opened = load_denoiser(folder)[1]
            if opened.fingerprint == wanted.fingerprint:
                return opened
    raise InputError(f"--init: the dataset's teacher ({named or 'unnamed'}, fingerprint {wanted.fingerprint[:12]}) is not on "
                     "this machine any more; give --init FOLDER with a copy of it")


def distill_student(
    config: DistillConfig, reader: Reader, start: Checkpoint, folder: Path, place: Place, report: Report
) -> Denoiser | None:
    """Train a student; training state and TensorBoard logs live in `folder`, from which a rerun resumes.

    Args:
        config: what to train and how; `workers` must be the world size.
        reader: of this process.
        start: the opened weights to start from.
        folder: shared by all processes; only rank 0 writes.
        place: this process. With world > 1, torch.distributed must be initialised.
        report: called on rank 0 only; returning True saves and stops all processes.

    Returns:
        The student with its EMA weights, or None if `report` asked to stop.

    Raises:
        InputError: `folder` holds a run of another config. WorkError: the loss is not finite.
    """
    torch.set_num_threads(config.optim.threads)
    teacher = _denoiser(start)
    if config.init_blocks is not None:
        teacher = with_blocks(teacher, config.init_blocks)
    torch.manual_seed(config.optim.seed)  # weights that only a student has
    student = student_of(teacher).to(place.device)
    real = _RealText(config, start, reader, place) if config.real.weight else None
    identity = identity_of(config, reader, start)
    if real is not None:
        identity["corpus_sha256"] = real.sha256
    trainer = Trainer(student, config.optim, folder, identity, writes=place.rank == 0)
    trainer.resume()
    module: nn.Module = StudentLoss(student, config.objective)
    if place.world > 1:
        module = nn.parallel.DistributedDataParallel(module)
    gauge = _Gauge(reader.budget_shares, place)
    batches = reader.batches(trainer.step, config.optim.steps, place.rank, place.world, config.data.loader_workers)

    def loss_at(step: int, generator: torch.Generator) -> Iterator[Tensor]:
        gauge.updates += 1
        for rows, nats, loss in _parts(module, next(batches).to(place.device), config.micro_batches, place):
            gauge.add(rows, nats.detach())
            yield gauge.counted(loss)
        if real is not None:
            text = real.batch(step, generator).to(place.device)
            for _, _, loss in _parts(module, text, config.micro_batches, place):
                yield gauge.counted(config.real.weight * loss)

    def report_on_first(step: int, scalars: dict[str, float]) -> bool:
        stop = bool(report(step, scalars)) if place.rank == 0 else False
        return bool(_summed(torch.tensor([float(stop)]), place)[0])

    return student if trainer.run(loss_at, report_on_first, gauge.read) else None


def _parts(module: nn.Module, batch: Batch, parts: int, place: Place) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """The parts of this process's share of a batch: rows, nats [b, L], and loss.

    The losses summed over parts and averaged over processes are the mean nats of the whole batch's target positions, each
    times the weight of its row. As weights are 1 on average over a dataset, batches are not normalised one by one: then the
    expected loss is that of the weighted dataset.
    """
    total = float(_summed((batch.target >= 0).sum().cpu().double()[None], place)[0])
    size = len(batch.t) // parts
    for part in range(parts):
        rows = batch.rows(slice(part * size, (part + 1) * size))
        alone = isinstance(module, nn.parallel.DistributedDataParallel) and part < parts - 1
        # The generator is suspended inside the context while its consumer calls backward.
        with cast(nn.parallel.DistributedDataParallel, module).no_sync() if alone else nullcontext():
            with torch.autocast("cuda", torch.bfloat16, enabled=place.device.type == "cuda"):
                nats = module(rows)
            weighted = nats if rows.row_weights is None else nats * rows.row_weights[:, None]
            yield rows, nats, weighted.sum() * (place.world / max(total, 1.0))


def _summed(value: Tensor, place: Place) -> Tensor:
    """The sum of a small CPU tensor over all processes."""
    if place.world == 1:
        return value
    there = value.to(place.device)
    dist.all_reduce(there)
    return there.cpu()


class _Gauge:
    """Since the last reading: the mean loss, and that per target position of every step budget seen."""

    def __init__(self, budgets: Iterable[int], place: Place) -> None:
        self.budgets, self.place = torch.tensor(sorted(budgets)), place
        self.sums = torch.zeros(len(self.budgets), 2, dtype=torch.float64)  # (nats, targets) of each budget
        self.total, self.updates = 0.0, 0

    def add(self, batch: Batch, nats: Tensor) -> None:
        """Count the nats [B, L] of a batch among those of its budgets."""
        bucket = torch.searchsorted(self.budgets, (1 / batch.dt).round().long().cpu())
        both = torch.stack([nats.sum(1), (batch.target >= 0).sum(1)], 1).double().cpu()
        self.sums.index_add_(0, bucket, both)

    def counted(self, loss: Tensor) -> Tensor:
        """`loss` itself, added to the sum."""
        self.total += float(loss.detach())
        return loss

    def read(self) -> dict[str, float]:
        """{'loss': nats, 'loss/8': nats, ...} over all processes, and start anew."""
        sums = _summed(self.sums, self.place)
        total = float(_summed(torch.tensor([self.total], dtype=torch.float64), self.place)[0])
        means = {"loss": total / (self.updates * self.place.world)}
        self.sums, self.total, self.updates = torch.zeros_like(self.sums), 0.0, 0
        return means | {f"loss/{n}": nats / count
                        for n, (nats, count) in zip(self.budgets.tolist(), sums.tolist(), strict=True) if count}


class _RealText:
    """Windows of real text, noised along the path: the denoising loss that a student may be mixed with."""

    def __init__(self, config: DistillConfig, start: Checkpoint, reader: Reader, place: Place) -> None:
        model = _denoiser(start).config
        corpus = prepare(config.real.corpus, start.vocabulary, start.vocabulary.size)
        self.sha256 = corpus.facts["sha256"]
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


def identity_of(config: DistillConfig, reader: Reader, start: Checkpoint) -> dict[str, Any]:
    """All that a student's bits depend on, but for real text and libraries; plain JSON."""
    datasets = [digest(manifest.identity) for manifest in reader.manifests]
    return {**_settings(config, reader, MOVABLE), "init": start.fingerprint, "datasets": datasets}


def training_facts(config: DistillConfig, reader: Reader, start: Checkpoint) -> dict[str, Any]:
    """What a student's training.json records."""
    return {"config": _settings(config, reader, None), "data": reader.facts(), "init": start.fingerprint}


def _settings(config: DistillConfig, reader: Reader, exclude: Any) -> dict[str, Any]:
    """A config as JSON data, its budgets resolved."""
    resolved = config.model_copy(update={"budgets": reader.budget_shares})
    return resolved.model_dump(mode="json", exclude=exclude)
