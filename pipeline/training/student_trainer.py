"""The updates of a student: batches of windows, and how far each step budget is.

Every number is a function of (config, data), so that a run that was killed ends in the same bits as one that was not. The loss
is the mean over the target positions of the whole batch, however it is divided (`data_parallel`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsdfm.pipeline.flow.mixture_path import MixturePath, stratified_times
from tsdfm.pipeline.loader.batches import Reader
from tsdfm.pipeline.loader.windows import Batch
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import ModelFolder
from tsdfm.pipeline.models.layers import compile_blocks, recompute_blocks
from tsdfm.pipeline.models.student import student_of, with_blocks
from tsdfm.pipeline.text.corpus import Corpus, prepare
from tsdfm.pipeline.text.ends.written import is_written
from tsdfm.pipeline.training.held_out.measure import HeldOut
from tsdfm.pipeline.training.loop.data_parallel import DataParallel, Place
from tsdfm.pipeline.training.loop.trainer import Ending, Part, Report, Stop, Trainer, never, seeded
from tsdfm.pipeline.training.objectives import StudentLoss
from tsdfm.pipeline.training.text_trainer import texts_of
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.training_record import HeldOutFacts


@dataclass(frozen=True)
class Start:
    """What a student is made from: its config, the opened data, the opened weights, and what its bits depend on.

    `progress` hears how far the reading of real text is.
    """

    config: DistillConfig
    reader: Reader
    weights: ModelFolder[Denoiser]
    identity: dict[str, Any]
    progress: Progress = unheard

    @cached_property
    def real(self) -> Corpus | None:
        """The real text that is mixed in, read when it is first asked for; None if there is none. Raises InputError."""
        words = self.weights.vocabulary
        return prepare(self.config.real.corpus, words, words.size, self.progress) if self.config.real.weight else None


@dataclass(frozen=True)
class Trained:
    """A student with its EMA weights, and what it is worth on the trajectories that were held out; None: there were none."""

    student: Denoiser
    held_out: HeldOutFacts | None


def train_student(start: Start, folder: Path, place: Place, report: Report, stop: Stop = never) -> Denoiser | None:
    """As `train`; the student alone."""
    trained = train(start, folder, place, report, stop)
    return None if trained is None else trained.student


def train(start: Start, folder: Path, place: Place, report: Report, stop: Stop = never) -> Trained | None:
    """Train a student; training state and TensorBoard logs live in `folder`, from which a rerun resumes.

    Args:
        start: of this process; its config's `workers` must be the world size.
        folder: shared by all processes; only rank 0 writes.
        place: this process. With world > 1, torch.distributed must be initialised.
        report: called on rank 0 only; returning True saves and stops all processes.
        stop: asked on rank 0 after every update; True saves and stops all processes.

    Returns:
        The student, or None if `report` or `stop` asked to stop.

    Raises:
        InputError: `folder` holds a run of another config. WorkError: the loss is not finite.
    """
    config, reader = start.config, start.reader
    student = _begun(start).to(place.device)
    real = None if start.real is None else _RealText(start, start.real, place)
    identity = dict(start.identity)
    if real is not None:
        identity["corpus_sha256"] = real.sha256
    held_out = None
    if config.data.held_out:
        held_out = HeldOut(config, reader.budget_shares, student.eval(), proposal_temperature(start))
    trainer = Trainer(student, config.optim, folder, identity, writes=place.rank == 0,
                      ending=Ending(config.patience, config.interpolate))
    trainer.resume()
    if config.recompute:
        recompute_blocks(student)
    if config.compile:
        compile_blocks(student)
    parallel = DataParallel(StudentLoss(student, config.objective, config.event_weight), place, config.micro_batches)
    windows = _Windows(config, reader.budget_shares, place)
    batches = reader.batches(trainer.step, config.optim.steps, place.rank, place.world, config.data.loader_workers)

    def parts(step: int, generator: torch.Generator) -> Iterator[Part]:
        batch = next(batches).to(place.device)
        yield from parallel.parts(batch, windows.count(batch), windows.weighed)
        if real is not None:
            text = real.batch(step, generator).to(place.device)
            yield from parallel.parts(text, _summed(text.target >= 0, place), weight=config.real.weight)

    def gauges() -> dict[str, float]:
        if held_out is None:
            return windows.gauge.read()
        with trainer.averaged():
            return windows.gauge.read() | held_out(student)

    if not trainer.run(parts, parallel.on_first(report), gauges, place.mean, place.heeding(stop)):
        return None
    return Trained(student, None if held_out is None else held_out.facts(student, trainer.kept_step, folder))


def _begun(start: Start) -> Denoiser:
    """The student before its first update."""
    config, teacher = start.config, start.weights.network
    if config.init_blocks is not None:
        with seeded(config.optim.seed):  # which draws weights that are then replaced
            teacher = with_blocks(teacher, config.init_blocks)
    with seeded(config.optim.seed):  # weights that only a student has
        return student_of(teacher, start.reader.clocks)


def proposal_temperature(start: Start) -> float | None:
    """The temperature at which the weights to start from drew the candidates of the data.

    None where they did not, or there was nothing to choose: other weights, several temperatures or numbers of candidates, a
    solver that averages several states, the blind arm.
    """
    config, identities = start.config, [manifest.identity for manifest in start.reader.manifests]
    settings = {(each.rollout.temperature, each.rollout.solver, each.grid.candidates) for each in identities}
    temperature, solver, candidates = next(iter(settings))
    drawn_by = {each.teacher.fingerprint for each in identities} == {start.weights.fingerprint}
    chosen = all(each.grid.shaped_steps or each.grid.token_steps for each in identities) and config.data.arm == "shaped"
    same = len(settings) == 1 and solver == "euler" and candidates > 1
    return temperature if same and drawn_by and chosen and config.init_blocks is None else None


def _summed(which: Tensor, place: Place) -> float:
    """How many are true in the batch of all processes."""
    return float(place.summed(which.sum().cpu().double()[None])[0])


class _Windows:
    """How the losses of windows make that of a batch, and how far each step budget is."""

    def __init__(self, config: DistillConfig, budgets: Iterable[int], place: Place) -> None:
        self.alike, self.place, self.gauge = config.alike, place, _Gauge(budgets, place)

    def weighed(self, rows: Batch, nats: Tensor) -> Tensor:
        """The sum of the nats [b, L] of rows, each times the weight of its row.

        Row weights are 1 on average over a dataset, so batches are not normalised one by one: then the expected loss is that
        of the weighted dataset.
        """
        self.gauge.add(rows, nats.detach())
        if self.alike:
            nats = nats / (rows.target >= 0).sum(1, keepdim=True).clamp_min(1)
        return nats.sum() if rows.row_weights is None else (nats * rows.row_weights[:, None]).sum()

    def count(self, batch: Batch) -> float:
        """What the sums of the batch of all processes are divided by: its windows with a target, or its targets."""
        targets = batch.target >= 0
        return _summed(targets.any(1) if self.alike else targets, self.place)


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
        sums = self.place.summed(self.sums)
        self.sums = torch.zeros_like(self.sums)
        return {f"loss/{n}": nats / count
                for n, (nats, count) in zip(self.budgets.tolist(), sums.tolist(), strict=True) if count}


class _RealText:
    """Windows of real text, noised along the path: the denoising loss that a student may be mixed with."""

    def __init__(self, start: Start, corpus: Corpus, place: Place) -> None:
        config, reader, model = start.config, start.reader, start.weights.network.config
        self.sha256 = corpus.facts.sha256
        length = reader.manifests[0].identity.rollout.length or model.length
        self.texts = texts_of(corpus.train, length, config.optim.batch_size, config.optim.seed, model.end_id)
        self.end_id = model.end_id
        self.path, self.place = MixturePath.of(model), place
        self.budgets = torch.tensor([float(n) for n in reader.budget_shares])
        self.weights = torch.tensor(list(reader.budget_shares.values()))

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        """This process's share of the windows of update `step`."""
        x_1 = self.texts.batch(step)
        n = self.budgets[torch.multinomial(self.weights, len(x_1), replacement=True, generator=generator)]
        t = torch.floor(stratified_times(len(x_1), generator) * n) / n
        x_t = self.path.sample(x_1, t, generator)
        target = x_1 if self.path.mask_id is None else torch.where(x_t == self.path.mask_id, x_1, -1)
        if self.end_id is not None and self.path.mask_id is not None:
            target = target.masked_fill(~is_written(x_t, self.end_id), -1)
        whole = Batch(x_t=x_t, t=t, dt=1 / n, target=target, candidates=None, weights=None, topk_ids=None, topk_logprobs=None)
        return self.place.share(whole)
