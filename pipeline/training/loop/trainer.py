"""The one training loop: AdamW, warm-up and cosine, clipping, EMA, exact resume.

Every random number of update s comes from a generator seeded with (seed, s), so an interrupted run that resumes takes the
same updates as one that never stopped. Its checkpoints are those of `checkpoint`.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from tsdfm.pipeline.training.held_out.early_stop import EarlyStop
from tsdfm.pipeline.training.loop import checkpoint
from tsdfm.schemas.base import WorkError
from tsdfm.schemas.optim import HELD_OUT_LOSS, OptimConfig
from tsdfm.schemas.progress import Progress, unheard

CHECKPOINT_SECONDS = 300.0  # between checkpoints at the most, however long an update takes

# torch's CPU generator uses only the low 32 bits of its seed; an odd stride spreads all seeds over them.
SEED_STRIDE = 0x9E3779B1
DROPOUT_STREAM = 0x2EED0000  # keeps the generators of updates apart from those of dropout, which draws from torch's global one



@dataclass(frozen=True)
class Part:
    """A part of an update's batch: how to compute its loss, and under what its gradient is taken.

    `loss` is called once, and its result differentiated, inside `sync`: data-parallel processes exchange gradients at the
    last part only. The sum of the parts' losses is the update's.
    """

    loss: Callable[[], Tensor]
    sync: Callable[[], AbstractContextManager[object]] = nullcontext


Parts = Callable[[int, torch.Generator], Iterable[Part]]  # (update, its generator) -> the parts of its batch
Mean = Callable[[float], float]  # a process's mean loss -> that over all processes
Gauges = Callable[[], dict[str, float]]
Report = Callable[[int, dict[str, float]], bool | None]  # (update, scalars); True: save and stop here


Stop = Callable[[], bool]  # whether to save and stop here


def never() -> bool:
    """Not to stop before the end."""
    return False


@dataclass(frozen=True)
class Watch:
    """Who watches a training: in the first process `stop` is asked after every update whether to save and stop, and
    `progress` hears how far the preparations are."""

    stop: Stop = never
    progress: Progress = unheard


UNWATCHED = Watch()


def whole(loss_at: Callable[[int, torch.Generator], Tensor]) -> Parts:
    """The parts of batches that are computed whole: a function of (update, its generator) that gives the scalar loss."""
    return lambda step, generator: [Part(lambda: loss_at(step, generator))]


def generator_of(seed: int, step: int) -> torch.Generator:
    """The generator of one update: a function of (seed, step) alone."""
    return torch.Generator().manual_seed(_mixed(seed, step))


def _mixed(seed: int, step: int) -> int:
    return (step + SEED_STRIDE * seed) % 2**32


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """torch's global generator (and the GPU's) seeded, and afterwards as it was before."""
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def learning_rate(config: OptimConfig, step: int) -> float:
    """Linear warm-up to the peak, then cosine decay to final_lr_ratio of it."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


def finite(name: str, value: float, step: int, folder: Path) -> float:
    """The value of a scalar at an update. Raises WorkError if it is not finite, and says what is kept in the state folder."""
    if not math.isfinite(value):
        kept = f"the last checkpoint in {folder} is kept; " if checkpoint.is_there(folder) else ""
        raise WorkError(f"the {name} is {value} at update {step}; {kept}lower optim.lr or optim.clip and start a new --out")
    return value


@dataclass(frozen=True)
class Ending:
    """Which weights a training leaves.

    patience: it stops once the scalar HELD_OUT_LOSS of that many lines was no lower than before, and leaves the weights that
    gave the lowest. interpolate: how far on the way from the first weights to the EMA weights those lie that it leaves
    (Wortsman et al. 2022, arXiv 2109.01903).
    """

    patience: int | None = None
    interpolate: float = 1.0


USUAL = Ending()


class Trainer:
    """Trains `model` in place of `steps` updates; afterwards `model` holds the EMA weights, or what `ending` says.

    `identity` is what must not change between a run and its resumption (the whole config); a mismatch is refused. Of the
    data-parallel processes of one run only the first `writes` checkpoints and logs.
    """

    def __init__(
        self, model: nn.Module, config: OptimConfig, folder: Path, identity: dict[str, object], *, writes: bool = True,
        ending: Ending = USUAL,
    ) -> None:
        self.model, self.config, self.folder, self.identity, self.writes = model, config, folder, identity, writes
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        vectors = [p for p in model.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=config.lr, betas=(0.9, config.beta2), fused=True,
        )
        self.parameters: list[Tensor] = [*matrices, *vectors]
        self.average = [p.detach().clone() for p in self.parameters]
        self.ending, self.start = ending, None if ending.interpolate == 1 else [p.clone() for p in self.average]
        self.early = None if ending.patience is None else EarlyStop(ending.patience, self.average)
        self.step = 0

    @property
    def kept_step(self) -> int:
        """The update whose weights a finished training leaves."""
        return self.step if self.early is None else self.early.step

    @property
    def left(self) -> list[Tensor]:
        """The weights that would be saved now, as `parameters`."""
        if self.start is None:
            return self.average
        with torch.no_grad():
            return list(torch._foreach_lerp(self.start, self.average, self.ending.interpolate))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model as it would be saved now, not training. Afterwards it is as it was before."""
        kept = [parameter.detach().clone() for parameter in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.left)
        self.model.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, kept)
            self.model.train()

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for index, parameter in enumerate(self.parameters):
            state = self.optimizer.state[parameter]
            tensors |= {f"{index}.weight": parameter.detach(), f"{index}.ema": self.average[index],
                        f"{index}.exp_avg": state["exp_avg"], f"{index}.exp_avg_sq": state["exp_avg_sq"]}
        return tensors if self.early is None else tensors | self.early.tensors()

    def save(self) -> None:
        """Write the training checkpoint; the header, written last, names the update it belongs to.

        Raises WorkError, and leaves the last checkpoint, if a weight is not finite or the disk full.
        """
        for parameter in self.parameters:
            self._check_finite("largest weight", float(parameter.detach().abs().max()))
        if not self.writes:
            return
        checkpoint.write(self.folder, self._tensors(), self.step, self.identity)

    def resume(self) -> bool:
        """Load the training checkpoint if there is one. Raises InputError if it belongs to another config."""
        old = checkpoint.identity_in(self.folder)
        if old is None:
            return False
        checkpoint.refuse_differing(self.folder, old, self.identity)
        wanted = {f"{index}.{part}": parameter.shape for index, parameter in enumerate(self.parameters)
                  for part in ("weight", "ema", "exp_avg", "exp_avg_sq")}
        if self.early is not None:
            wanted |= {name: tensor.shape for name, tensor in self.early.tensors().items()}
        tensors, step = checkpoint.read(self.folder, wanted, self.config.steps)
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"{index}.weight"])
                self.average[index].copy_(tensors[f"{index}.ema"])
                device = parameter.device
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(step), device=device), "exp_avg": tensors[f"{index}.exp_avg"].to(device),
                    "exp_avg_sq": tensors[f"{index}.exp_avg_sq"].to(device),
                }
        if self.early is not None:
            self.early.load(tensors)
        self.step = step
        return True

    def update(self, parts: Parts) -> tuple[float, float]:
        """One update. Returns this process's loss and the gradient norm. Raises WorkError on a loss that is not finite."""
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(_mixed(self.config.seed, DROPOUT_STREAM + self.step))
        self.optimizer.zero_grad(set_to_none=True)
        value = 0.0
        for part in parts(self.step, generator_of(self.config.seed, self.step)):
            with part.sync():
                loss = part.loss()
                loss.backward()  # also of a loss that is not finite: data-parallel processes wait for each other's gradients
            value += loss.item()
        self._check_finite("loss", value)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.clip))
        self._check_finite("gradient norm", norm)
        self.optimizer.step()
        # Early on the average follows the weights closely, so that it forgets the initialisation.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        self.step += 1
        return value, norm

    def _check_finite(self, name: str, value: float) -> None:
        finite(name, value, self.step, self.folder)

    def run(
        self, parts: Parts, report: Report, gauges: Gauges = dict, mean: Mean = float, stop: Stop = never,
    ) -> bool:
        """Train from the current update to the last, with checkpoints, log lines and TensorBoard scalars.

        Args:
            parts: of every update's batch.
            report: called whenever a line is due, with `loss` (the mean since the last line), `gradient_norm`, `lr` and the
                gauges' scalars.
            gauges: further scalars, asked for whenever a line is due.
            mean: this process's mean loss to that of all.
            stop: asked after every update whether to save and stop here; all processes must be told alike.

        A checkpoint is written every `checkpoint_every` updates and at least every CHECKPOINT_SECONDS, and where it stops.

        Returns False if `report` or `stop` asked to stop before the end: then `model` holds the weights as they are.
        """
        with seeded(self.config.seed, self.parameters[0].device):
            return self._run(parts, report, gauges, mean, stop)

    def _run(self, parts: Parts, report: Report, gauges: Gauges, mean: Mean, stop: Stop) -> bool:
        writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step + 1) if self.writes else None
        window: list[float] = []
        self.model.train()
        stopping, saved = False, time.monotonic()
        while not self._ended and not stopping:
            value, norm = self.update(parts)
            window.append(value)
            if self.step == self.config.steps or self.step % self.config.log_every == 0:
                scalars = {"loss": mean(sum(window) / len(window)), "gradient_norm": norm,
                           "lr": learning_rate(self.config, self.step - 1), **gauges()}
                window.clear()
                if self.early is not None:
                    self.early.hear(mean(scalars[HELD_OUT_LOSS]), self.left, self.step)
                if writer:
                    for name, scalar in scalars.items():
                        writer.add_scalar(name, scalar, self.step)
                stopping = bool(report(self.step, scalars))
            stopping |= stop()
            due = self.step % self.config.checkpoint_every == 0 or time.monotonic() - saved > CHECKPOINT_SECONDS
            if self._ended or stopping or due:
                self.save()
                saved = time.monotonic()
        if writer:
            writer.close()
        if not self._ended:
            return False
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.left if self.early is None else self.early.best)
        self.model.eval()
        return True

    @property
    def _ended(self) -> bool:
        return self.step >= self.config.steps or (self.early is not None and self.early.spent)
