"""Students from frozen shards against our predecessor's online scheme: `python tests/benchmarks/distill.py [--quick]`.

Four questions at L = 128 and B = 32, each answered by ratios of runs that take turns on the same machine (see measure.py). The
student has the embedded teacher's shape (192 x 5 blocks, V = 2,048) and random weights; one thread; both sources.

  reader    The reader, for every objective, against the student's update (forward, backward, AdamW, EMA) on such batches held in
            memory. It streams: every piece opens the dataset anew and reads epochs in which each shard is read (from the page
            cache), checksummed, decoded from Parquet, validated, and each row rebuilt at one window; groups change four times
            an epoch. So nothing is reused, as in a dataset far larger than the two groups that a reader holds. The shards hold
            both arms, one of which is thrown away, and random tokens, which hardly compress. `held`: a dataset of one group,
            decoded before the clock starts. Target: the reader at least 20x faster.
  updates   Updates per second from shards, reader and update together (objective `event`), against three online schemes.
            Target: at least 3.5x as many as `online`.
  memory    Peaks of those sides above their resting memory (weights and libraries), over updates the first of which allocates
            gradients and Adam's moments. The weights at rest stand beside it.
  forward   Parameters and CPU time per forward pass of the student against the teacher. Target: within 2 %.

`online` is what FS-DFM (arXiv 2509.20624) does for one update, by its published code, with its [B, L, V] tensors:
  1. windows x_1 of data, noised to x_t; (t, dt) from the same budgets as ours;
  2. the frozen teacher's logits at x_t;
  3. four passes of the EMA student, told dt/2: k1 at x_t, k2 and k3 at two midpoint states, k4 at an end state; each state a jump
     of dt/2 from the one before, drawn from dense rates (softmax, one-hot, rates that are zero at the current token, their
     sums, clocks, a multinomial of the rows that jump);
  4. the target (k1 + 2 k2 + 2 k3 + k4) / 6, or the teacher's logits in rows of the smallest dt; all rows go through both;
  5. one student pass, forward KL to the target at all positions, backward, clipping, AdamW, EMA.
In its favour, steps 1-4 precede the student's pass, whose activations they would else keep alive, and with the mask source only
masked positions jump. Nothing is compiled on either side.

`published` adds what that code also computes in its default configuration, most of it to no effect: rates of the last stage, of
the average and of the student, the jumps of teacher and average, the generalised KL to x_1 (its loss in rows of the smallest dt),
and the student's pass comes first. `lean` is the least that the scheme can do with all of this project's devices, which the
predecessor has not: the teacher sees only rows of the smallest dt and the EMA student only the others (3.6 passes in place of 5),
clocks come first, head rows only where they ring, hidden states are averaged in place of logits. There is no target for these two.

The gap depends on V: trunks cost all sides alike, while ours needs logits only where there is a target. So updates are also
measured at the predecessor's own V = 50,257, with B = 4 (tokens of the same shards, whose ids are a part of that vocabulary).
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import torch
import torch.nn.functional as F
from measure import MIB, Builder, Piece, Ratio, Sample, interleave, machine, report, say, table
from rollout import draw, randomise
from torch import Tensor, nn

from tsdfm.pipeline.dataset.manifest import read_manifest
from tsdfm.pipeline.flow.generate import InThisProcess, generate_dataset
from tsdfm.pipeline.flow.mixture_path import MixturePath, stratified_times
from tsdfm.pipeline.loader.batches import Reader, ReaderSettings
from tsdfm.pipeline.loader.windows import Batch
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import embedded, load, save
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.models.student import student_of
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.pipeline.training.loop.trainer import Trainer, whole
from tsdfm.pipeline.training.objectives import StudentLoss
from tsdfm.pipeline.training.text_trainer import TokenWindows
from tsdfm.schemas.distill import DataConfig, DistillConfig, DistillOptim
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.model import DenoiserConfig, NceConfig
from tsdfm.schemas.terms import Objective, Source

Kind = Literal["published", "online", "lean"]

SEED = 0
LENGTH, STEPS, CANDIDATES, TOP_K = 128, 64, 8, 16  # of the dataset
VOCAB = 2048  # of the embedded tokenizer, [MASK] included
SHARD, GROUP = 32, 2  # trajectories per shard; shards decoded together
BUDGETS = dict.fromkeys((1, 2, 4, 8, 16, 32, 64), 1.0)  # as `distill` takes them for N = 64
BETA = DistillConfig().beta
MAKER = {"hidden_size": 8, "n_blocks": 1, "n_heads": 1}  # of the models that make the dataset, whose size no reader sees
HELD_EPOCHS = 32  # an epoch of decoded rows takes a few milliseconds
MANY = 1 << 20  # updates of the schedule: more than any run takes
WORK = Path("out/benchmark-distill")
TARGET_READER, TARGET_UPDATES, TARGET_FORWARD = 20.0, 3.5, 0.02
RATE_FLOOR = 1e-8  # the scheme's: keeps log(1 - kappa) and sums of rates away from 0


@dataclass(frozen=True)
class Setting:
    """One measured side: per round `epochs` of a dataset of so many `trajectories` are read, or `updates` taken."""

    source: Source = "mask"
    objective: Objective = "event"
    trajectories: int = 256
    epochs: int = 2
    updates: int = 1
    batch: int = 32
    vocab: int | None = None  # of teacher and student; None: the dataset's

    @property
    def tokens(self) -> int:
        """Tokens of a batch."""
        return self.batch * LENGTH

    @property
    def data(self) -> Path:
        """The folder of the dataset."""
        return WORK / f"{self.source}-{self.trajectories}"

    def __str__(self) -> str:
        return f"{self.source}, V {self.vocab or VOCAB:,}, B {self.batch}"


@dataclass(frozen=True)
class Plan:
    """Sizes of one run of the benchmark."""

    rounds: int
    settings: tuple[Setting, ...]  # of reader and updates, one per source
    wide: tuple[Setting, ...]  # of updates at the predecessor's vocabulary
    passes: int  # pairs of forward passes per round


MASK, UNIFORM = Setting(), Setting(source="uniform")
FULL = Plan(rounds=5, settings=(MASK, UNIFORM), wide=(replace(MASK, batch=4, vocab=50_257),), passes=12)
QUICK = Plan(rounds=2, settings=(replace(MASK, epochs=1),), wide=(), passes=8)
TINY = Setting(trajectories=16, epochs=1, batch=2)  # pages the libraries in


# -- data and models ---------------------------------------------------------------------------------------

def denoiser_config(source: Source, vocabulary: Vocabulary, **shape: int) -> DenoiserConfig:
    """A denoiser of the embedded teacher's vocabulary at length LENGTH; by default of its shape, too."""
    masked = source == "mask"
    return DenoiserConfig(vocab_size=vocabulary.size - (not masked), length=LENGTH, source=source,
                          mask_id=vocabulary.mask_id if masked else None, **shape)


def make_data(setting: Setting) -> None:
    """The dataset of a setting, unless it is there: random rollouts of small models, in this process."""
    vocabulary = load(embedded("teacher-mask")).vocabulary
    torch.manual_seed(SEED)
    teacher, compass = (WORK / f"{setting.source}-{role}" for role in ("teacher", "compass"))
    trunk = denoiser_config(setting.source, vocabulary, **MAKER)
    networks: dict[Path, Denoiser | NceEncoder] = {teacher: Denoiser(trunk), compass: NceEncoder(NceConfig(trunk=trunk))}
    for folder, network in networks.items():
        randomise(network)
        save(folder, network, vocabulary, None)
    config = GenerateConfig.model_validate({
        "out": str(setting.data), "teacher": str(teacher), "compass": str(compass), "arm": "both",
        "trajectories": setting.trajectories, "shard_size": min(SHARD, setting.trajectories // 2),
        "rollout": {"steps": STEPS, "top_k": TOP_K, "logprobs": True, "seed": SEED}, "shaping": {"candidates": CANDIDATES},
    })
    say(f"generate {setting.data}, unless it is there ...")
    generate_dataset(config, maker=InThisProcess(torch.device("cpu")))  # refuses a dataset of other constants


def open_reader(setting: Setting, group: int = GROUP, seed: int = SEED) -> Reader:
    """The reader of a setting's shaped arm, on one core."""
    pa.set_cpu_count(1)
    return Reader.open(DataConfig(paths=[str(setting.data)], group=group), ReaderSettings(
        objective=setting.objective, beta=BETA, budgets=BUDGETS, batch_size=setting.batch, seed=seed))


def make_teacher(setting: Setting) -> Denoiser:
    """The random teacher of a setting; equal settings give equal weights."""
    torch.manual_seed(SEED)
    config = denoiser_config(setting.source, load(embedded("teacher-mask")).vocabulary)
    teacher = Denoiser(config.model_copy(update={"vocab_size": setting.vocab or config.vocab_size}))
    randomise(teacher)
    return teacher.eval().requires_grad_(False)


def make_trainer(student: Denoiser, setting: Setting) -> Trainer:
    """The trainer of `distill`, with its defaults; nothing is written."""
    student.train()
    optim = DistillOptim(steps=MANY, batch_size=setting.batch, seed=SEED)
    return Trainer(student, optim, WORK, {}, writes=False)


def weights_mib(*networks: nn.Module) -> float:
    """MiB of the weights of some networks."""
    return sum(p.numel() * p.element_size() for network in networks for p in network.parameters()) / MIB


# -- the reader and the update -----------------------------------------------------------------------------

def build_reader(setting: Setting, held: bool = False) -> Piece:
    """The reader; the piece is `epochs`, each by a reader that is opened anew; if `held`, many more by one that stays open."""
    seeds = itertools.count()
    stays = open_reader(setting, group=setting.trajectories)
    batches = stays.rows_per_epoch // setting.batch
    if held:
        stays.batch(0)

    def piece() -> dict[str, float]:
        tokens = 0
        for _ in range(setting.epochs * (HELD_EPOCHS if held else 1)):
            reader = stays if held else open_reader(setting, seed=next(seeds))
            tokens += sum(batch.x_t.numel() for batch in reader.batches(0, batches))
        return {"tokens": tokens}

    return piece


def update_of(loss: StudentLoss, batch: Batch) -> Tensor:
    """The mean loss over the target positions of a batch, as `distill` takes it."""
    return loss(batch).sum() / (batch.target >= 0).sum().clamp_min(1)


def build_update(setting: Setting) -> Piece:
    """The student's update on batches that are held in memory."""
    student = student_of(make_teacher(setting))
    trainer, loss = make_trainer(student, setting), StudentLoss(student, setting.objective)
    reader = open_reader(setting)
    batches = [reader.batch(step) for step in range(setting.updates)]

    def at(batch: Batch) -> Callable[[int, torch.Generator], Tensor]:
        return lambda step, generator: update_of(loss, batch)

    def piece() -> dict[str, float]:
        for batch in batches:
            trainer.update(whole(at(batch)))
        targets = sum(int((batch.target >= 0).sum()) for batch in batches)
        return {"tokens": setting.updates * setting.tokens, "targets": targets / len(batches) / setting.tokens}

    return piece


# -- updates from shards, and online -----------------------------------------------------------------------

def build_shards(setting: Setting) -> Piece:
    """Reader and update, as `distill` runs them."""
    student = student_of(make_teacher(setting))
    trainer, loss = make_trainer(student, setting), StudentLoss(student, setting.objective)
    stream = open_reader(setting).batches(0, MANY)

    def piece() -> dict[str, float]:
        for _ in range(setting.updates):
            trainer.update(whole(lambda step, generator: update_of(loss, next(stream))))
        return {"tokens": setting.updates * setting.tokens, "weights_mib": 2 * weights_mib(student)}

    return piece


@dataclass(frozen=True)
class Drawn:
    """A batch of the online scheme: x_t [B, L] on the path to x_1 [B, L] at t [B], to be advanced by dt [B]."""

    x_1: Tensor
    x_t: Tensor
    t: Tensor
    dt: Tensor


@dataclass(frozen=True)
class Networks:
    """What an online scheme holds."""

    teacher: Denoiser
    student: Denoiser
    ema: Denoiser

    @property
    def path(self) -> MixturePath:
        """The path of all three."""
        return MixturePath.of(self.teacher.config)


def build_online(setting: Setting, kind: Kind) -> Piece:
    """An online scheme: targets made anew for every update."""
    teacher, loss_of = make_teacher(setting), {"published": published_loss, "online": online_loss, "lean": lean_loss}[kind]
    networks = Networks(teacher, student_of(teacher), student_of(teacher).eval().requires_grad_(False))
    trainer = make_trainer(networks.student, setting)
    share_average(networks.ema, trainer)
    draws = noised_data(setting, networks.path)

    def piece() -> dict[str, float]:
        for _ in range(setting.updates):
            trainer.update(whole(lambda step, generator: loss_of(networks, next(draws))))
        return {"tokens": setting.updates * setting.tokens, "weights_mib": weights_mib(*vars(networks).values())}

    return piece


def share_average(ema: Denoiser, trainer: Trainer) -> None:
    """Let `ema` use the trainer's averaged weights themselves; no copies are made."""
    by_parameter = {id(p): average for p, average in zip(trainer.parameters, trainer.average, strict=True)}
    for mine, theirs in zip(ema.parameters(), trainer.model.parameters(), strict=True):
        mine.data = by_parameter[id(theirs)]


def noised_data(setting: Setting, path: MixturePath) -> Iterator[Drawn]:
    """Windows of a token stream on the path, at the times and steps of our budgets."""
    generator = torch.Generator().manual_seed(SEED)
    stream = torch.randint(path.vocab_size - (path.mask_id is not None), (1 << 16,), generator=generator, dtype=torch.int32)
    windows = TokenWindows(stream, LENGTH, setting.batch, SEED)
    budgets, chances = torch.tensor([float(n) for n in BUDGETS]), torch.tensor(list(BUDGETS.values()))
    for step in range(MANY):
        x_1 = windows.batch(step)
        n = budgets[torch.multinomial(chances, setting.batch, replacement=True, generator=generator)]
        t = torch.floor(stratified_times(setting.batch, generator) * n) / n
        yield Drawn(x_1, path.sample(x_1, t, generator), t, 1 / n)


def online_loss(networks: Networks, batch: Drawn) -> Tensor:
    """The predecessor's loss: four stages and the teacher, for all rows, densely."""
    with torch.no_grad():
        logits, _ = stages(networks, batch)
        small = takes_teacher(batch)[:, None, None]
        target = torch.where(small, networks.teacher(batch.x_t, batch.t), average(logits))
    return kl(target, networks.student(batch.x_t, batch.t, batch.dt)).mean()


def stages(networks: Networks, batch: Drawn) -> tuple[list[Tensor], list[Tensor]]:
    """Logits of the four stages, and the rates of the first three, by which the states after them are drawn: [B, L, V] each."""
    half, state = batch.dt / 2, batch.x_t
    middle, end = batch.t + half, batch.t + batch.dt
    logits, rates = [networks.ema(state, batch.t, half)], []
    for now, evaluated_at in ((batch.t, middle), (middle, middle), (middle, end)):
        rates.append(dense_rates(logits[-1], networks.path, state, now, half))
        state = dense_jump(rates[-1], networks.path, state, half)
        logits.append(networks.ema(state, evaluated_at, half))
    return logits, rates


def average(k: Sequence[Tensor]) -> Tensor:
    """The Runge-Kutta average of four stages."""
    return (k[0] + 2 * k[1] + 2 * k[2] + k[3]) / 6


def kl(target: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(target) || softmax(logits)) of every position: [B, L, V] each -> [B, L]."""
    log_p, log_q = F.log_softmax(target, -1), F.log_softmax(logits, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def dense_rates(logits: Tensor, path: MixturePath, x_t: Tensor, t: Tensor, h: Tensor) -> Tensor:
    """The rates [B, L, V] that the posterior of `logits` [B, L, V] has on average over (t, t + h]; zero at x_t."""
    p_1t = torch.softmax(logits, -1)
    delta_t = torch.zeros_like(p_1t).scatter_(-1, x_t[..., None], 1.0)
    left = (1 - path.kappa(torch.stack([t, t + h]))).clamp_min(RATE_FLOOR).log()
    scale = (left[0] - left[1]) / h
    return scale[:, None, None] * (p_1t - delta_t) * (1 - delta_t)


def dense_jump(u: Tensor, path: MixturePath, x_t: Tensor, h: Tensor) -> Tensor:
    """A jump by rates u [B, L, V] of a step h [B]."""
    u = u.clamp_min(0)
    intensity = u.sum(-1).clamp_min(RATE_FLOOR)
    jumps = (torch.rand(x_t.shape) < 1 - torch.exp(-h[:, None] * intensity)) & movable(x_t, path)
    x_next = x_t.clone()
    if jumps.any():
        x_next[jumps] = draw(u[jumps])
    return x_next


def published_loss(networks: Networks, batch: Drawn) -> Tensor:
    """`online_loss` with all that the published code computes by default."""
    path, x_t, t, dt, small = networks.path, batch.x_t, batch.t, batch.dt, takes_teacher(batch)
    student = networks.student(x_t, t, dt)
    unused: list[Tensor] = [dense_rates(student, path, x_t, t, dt)]
    with torch.no_grad():
        logits, rates = stages(networks, batch)
        rates.append(dense_rates(logits[-1], path, x_t, t + dt, dt / 2))
        averaged, averaged_rates = average(logits), average(rates)
        by_teacher = networks.teacher(x_t, t)
        x_1 = draw(torch.softmax(by_teacher, -1))
        teacher_rates = (path.kappa_derivative(t) / (1 - path.kappa(t)))[:, None, None] * F.one_hot(x_1, path.vocab_size)
        teacher_rates = torch.where(F.one_hot(x_t, path.vocab_size).bool(), 0.0, teacher_rates)
        jumped = dense_jump(teacher_rates, path, x_t, dt)
        x_next = dense_jump(dense_rates(averaged, path, x_t, t, dt), path, x_t, dt)
        unused += [torch.where(small[:, None], jumped, x_next)]
        unused += [torch.where(small[:, None, None], teacher_rates, averaged_rates)]
        target = torch.where(small[:, None, None], by_teacher, averaged)
    to_data = generalised_kl(student, path, batch).mean(1)
    return torch.where(small, to_data, kl(target, student).mean(1)).mean()


def generalised_kl(logits: Tensor, path: MixturePath, batch: Drawn) -> Tensor:
    """The loss of real data at every position, up to what the student can't change: [B, L]."""
    log_p = F.log_softmax(logits, -1)
    of_x_1, of_x_t = log_p.gather(-1, batch.x_1[..., None])[..., 0], log_p.exp().gather(-1, batch.x_t[..., None])[..., 0]
    stays = (batch.x_1 == batch.x_t).float()
    scale = path.kappa_derivative(batch.t) / (1 - path.kappa(batch.t))
    return -scale[:, None] * (of_x_t - stays + (1 - stays) * of_x_1)


def lean_loss(networks: Networks, batch: Drawn) -> Tensor:
    """The same loss with as little work as it can be had for: no row goes through both, no dense rates."""
    ema, path, small = networks.ema, networks.path, takes_teacher(batch)
    x_t, t, half = batch.x_t[~small], batch.t[~small], batch.dt[~small] / 2
    middle, end, state = t + half, t + 2 * half, x_t
    with torch.no_grad():
        hidden = [ema.hidden(state, t, half)]
        for now, until, evaluated_at in ((t, middle, middle), (middle, end, middle), (middle, end, end)):
            state = lean_jump(ema, hidden[-1], path, state, now, until)
            hidden.append(ema.hidden(state, evaluated_at, half))
        target = t.new_empty(*batch.x_t.shape, path.vocab_size)
        target[~small] = ema.head(average(hidden))
        if small.any():
            target[small] = networks.teacher(batch.x_t[small], batch.t[small])
    return kl(target, networks.student(batch.x_t, batch.t, batch.dt)).mean()


def lean_jump(ema: Denoiser, hidden: Tensor, path: MixturePath, x_t: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """A jump: clocks first, then logits of the rows that ring."""
    rings = (torch.rand(x_t.shape) < path.ring_probability(t, t_next)[:, None]) & movable(x_t, path)
    x_next = x_t.clone()
    if rings.any():
        x_next[rings] = draw(torch.softmax(ema.head(hidden[rings]), -1))
    return x_next


def takes_teacher(batch: Drawn) -> Tensor:
    """[B] bool: rows of the smallest step, whose target is the teacher's own."""
    return batch.dt <= 1 / max(BUDGETS)


def movable(x_t: Tensor, path: MixturePath) -> Tensor:
    """[B, L] bool: which positions may jump."""
    return torch.ones_like(x_t, dtype=torch.bool) if path.mask_id is None else x_t == path.mask_id


# -- a forward pass ----------------------------------------------------------------------------------------

def build_forward(setting: Setting, passes: int) -> Piece:
    """Forward passes of teacher and student in turn, each going first in half of the pairs; CPU seconds of each."""
    teacher = make_teacher(setting)
    student = student_of(teacher).eval().requires_grad_(False)
    x_t = torch.randint(teacher.config.vocab_size, (setting.batch, LENGTH), generator=torch.Generator().manual_seed(SEED))
    t, dt = torch.full((setting.batch,), 0.5), torch.full((setting.batch,), 0.125)
    facts = {"teacher_parameters": size_of(teacher), "student_parameters": size_of(student)}

    def seconds(name: str) -> float:
        start = time.process_time()
        teacher(x_t, t) if name == "teacher" else student(x_t, t, dt)
        return time.process_time() - start

    def piece() -> dict[str, float]:
        taken: dict[str, list[float]] = {"teacher": [], "student": []}
        with torch.no_grad():
            for turn in range(passes):
                for name in sorted(taken, reverse=turn % 2 == 0):
                    taken[name].append(seconds(name))
        return {"tokens": 2 * passes * setting.tokens, **facts,
                **{f"{name}_seconds": statistics.median(values) for name, values in taken.items()}}

    return piece


def size_of(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())


# -- the comparisons ---------------------------------------------------------------------------------------

Row = Sequence[object]


def pair(build: Callable[..., Piece], setting: Setting, *arguments: object) -> tuple[Builder, Builder]:
    """A side and its warm-up."""
    tiny = replace(TINY, source=setting.source, objective=setting.objective)
    return partial(build, setting, *arguments), partial(build, tiny, *arguments)


def summary(samples: Sequence[Sample]) -> dict[str, float]:
    """Medians of the CPU rate and the counts, and the highest peak."""
    facts = {key: statistics.median(s.counts[key] for s in samples) for key in samples[0].counts}
    del facts["tokens"]
    facts["tokens_per_cpu_second"] = statistics.median(s.cpu_rate for s in samples)
    facts["extra_peak_mib"] = max(s.extra_bytes for s in samples) / MIB
    return facts


def times(fast: Sequence[Sample], slow: Sequence[Sample]) -> tuple[Ratio, Ratio]:
    """How many times as many tokens `fast` makes as `slow`: per second of wall clock, and of CPU time."""
    return (Ratio.of([s.rate for s in fast], [s.rate for s in slow]),
            Ratio.of([s.cpu_rate for s in fast], [s.cpu_rate for s in slow]))


def compare_reader(plan: Plan, rounds: int) -> dict[str, object]:
    """The reader against the student's update, for every objective."""
    result: dict[str, object] = {}
    rows: list[Row] = []
    objectives: tuple[Objective, ...] = get_args(Objective)
    for base in plan.settings:
        source = base.source
        say(f"reader against update, {source} source ...")
        sides = {"event, held, reader": pair(build_reader, base, True)}
        for objective in objectives:
            setting = replace(base, objective=objective)
            sides[f"{objective}, reader"] = pair(build_reader, setting)
            sides[f"{objective}, update"] = pair(build_update, setting)
        samples = interleave(sides, rounds, 1)
        for name in (*objectives, "event, held"):
            read, updates = samples[f"{name}, reader"], samples[f"{name.removesuffix(', held')}, update"]
            reader, update, (wall, cpu) = summary(read), summary(updates), times(read, updates)
            rows.append((f"{source}, {name}", reader["tokens_per_cpu_second"], reader["extra_peak_mib"],
                         update["tokens_per_cpu_second"], 100 * update["targets"], wall, cpu))
            result[f"{source}, {name}"] = {
                "reader": reader, "update": update, "reader_over_update": asdict(wall), "reader_over_update_cpu": asdict(cpu),
                "met": cpu.median >= TARGET_READER}
    table(f"Reader against the student's update, L {LENGTH}, B {MASK.batch}, one core; tokens of rebuilt states\n"
          f"(target: >= {TARGET_READER:g}x by CPU time, streaming)",
          ("", "reader tokens/CPU s", "peak MiB", "update tokens/CPU s", "targets %", "times, wall", "times, CPU"), rows)
    return result


def compare_updates(plan: Plan, rounds: int) -> dict[str, object]:
    """Updates from shards against both online schemes, and their memory."""
    result: dict[str, object] = {}
    rows: list[Row] = []
    for setting in (*plan.settings, *plan.wide):
        say(f"updates from shards and online, {setting} ...")
        sides = {"shards": pair(build_shards, setting)}
        for kind in get_args(Kind):
            sides[kind] = pair(build_online, setting, kind)
        samples = interleave(sides, rounds, 1)
        ours = summary(samples["shards"])
        for name, side in samples.items():
            fact, (wall, cpu) = summary(side), times(samples["shards"], side)
            per_second, memory = fact["tokens_per_cpu_second"] / setting.tokens, fact["extra_peak_mib"] / ours["extra_peak_mib"]
            rows.append((f"{setting}, {name}", per_second, wall, cpu, fact["weights_mib"], fact["extra_peak_mib"], memory))
            result[f"{setting}, {name}"] = fact | {
                "updates_per_cpu_second": per_second, "ours_times": asdict(wall), "ours_times_cpu": asdict(cpu),
                "memory_times_ours": memory} | ({"met": cpu.median >= TARGET_UPDATES} if name == "online" else {})
    table(f"Updates from shards against the online scheme, L {LENGTH}, one thread\n"
          f"(target: ours >= {TARGET_UPDATES:g}x `online` by CPU time)",
          ("", "updates/CPU s", "ours, times, wall", "ours, times, CPU", "weights MiB", "peak MiB above rest",
           "peak / ours"), rows)
    return result


def compare_forward(plan: Plan, rounds: int) -> dict[str, object]:
    """A forward pass of the student against one of the teacher."""
    say("forward passes ...")
    samples = interleave({"both": pair(build_forward, replace(MASK, batch=8), plan.passes)}, rounds, 1)["both"]
    teacher, student = samples[0].counts["teacher_parameters"], samples[0].counts["student_parameters"]
    ratio = Ratio.of([s.counts["student_seconds"] for s in samples], [s.counts["teacher_seconds"] for s in samples])
    milliseconds = {name: 1000 * statistics.median(s.counts[f"{name}_seconds"] for s in samples)
                    for name in ("teacher", "student")}
    table(f"A forward pass, L {LENGTH}, B 8, all logits, one thread (target: the student's within {TARGET_FORWARD:.0%})",
          ("", "parameters", "CPU ms", "parameters / teacher", "time / teacher"),
          [("teacher", int(teacher), milliseconds["teacher"], "1", "1"),
           ("student", int(student), milliseconds["student"], f"{student / teacher:.4f}",
            f"{ratio.median:.4f} ({ratio.least:.4f}-{ratio.most:.4f})")])
    return {
        "teacher_parameters": teacher, "student_parameters": student, "parameters_ratio": student / teacher,
        "cpu_milliseconds": milliseconds, "time_ratio": asdict(ratio),
        "met": max(student / teacher, ratio.median) <= 1 + TARGET_FORWARD,
    }


def data_facts(setting: Setting) -> dict[str, object]:
    """What the reader read."""
    manifest = read_manifest(open_store(str(setting.data)))
    totals = manifest.totals
    return {"shards": len(manifest.shards), "group": GROUP, "rows": totals.rows, "events": totals.events, "bytes": totals.bytes,
            "bytes_per_row": totals.bytes / totals.rows}


COMPARISONS = {"reader": compare_reader, "updates": compare_updates, "forward": compare_forward}


def main() -> None:
    """Run the comparisons; tables on standard error, one JSON object on standard output."""
    parser = argparse.ArgumentParser(description="Students from frozen shards against our predecessor's online scheme.")
    parser.add_argument("--quick", action="store_true", help="one source, few rounds, under two minutes: not to be quoted")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON object to FILE")
    parser.add_argument("--rounds", type=int, metavar="R", help=f"turns of every side (default: {FULL.rounds})")
    parser.add_argument("--only", choices=tuple(COMPARISONS), help="run one comparison (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan, started = QUICK if options.quick else FULL, time.perf_counter()
    result: dict[str, object] = {"machine": machine(1), "quick": options.quick, "rounds": options.rounds or plan.rounds}
    for setting in plan.settings:
        for needed in (replace(TINY, source=setting.source), setting):
            make_data(needed)
        result[f"data, {setting.source}"] = facts = data_facts(setting)
        say(f"{setting.source}: {facts}")
    for name, compare in COMPARISONS.items():
        if options.only in (None, name):
            result[name] = compare(plan, options.rounds or plan.rounds)
    result["seconds"] = time.perf_counter() - started
    say(f"\n{result['seconds']:.0f} s")
    report(result, options.json)


if __name__ == "__main__":
    main()
