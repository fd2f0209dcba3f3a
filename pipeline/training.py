"""The one training loop: AdamW, warm-up and cosine, clipping, EMA, exact resume.

Every random number of update s comes from a generator seeded with (seed, s), so an interrupted run that resumes takes the
same updates as one that never stopped. A training checkpoint is tensors in one safetensors file plus a JSON header.
"""

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from tsdfm.pipeline.files import write_atomic
from tsdfm.schemas.base import InputError, WorkError, differences
from tsdfm.schemas.train import OptimConfig

STATE_FILE, HEADER_FILE = "training_state.safetensors", "training_state.json"

# torch's CPU generator uses only the low 32 bits of its seed; an odd stride spreads all seeds over them.
SEED_STRIDE = 0x9E3779B1
EPOCH_STREAM = 0x5EED0000  # keeps the generators of epochs apart from those of updates
DROPOUT_STREAM = 0x2EED0000  # and those of dropout, which draws from torch's global generator

# (update, its generator) -> the scalar loss, or the losses of the parts of a batch, whose sum is the loss
LossAt = Callable[[int, torch.Generator], Tensor | Iterable[Tensor]]
Gauges = Callable[[], dict[str, float]]
Report = Callable[[int, dict[str, float]], bool | None]  # True: save and stop here


def generator_of(seed: int, step: int) -> torch.Generator:
    """The generator of one update: a function of (seed, step) alone."""
    return torch.Generator().manual_seed(_mixed(seed, step))


def _mixed(seed: int, step: int) -> int:
    return (step + SEED_STRIDE * seed) % 2**32


def learning_rate(config: OptimConfig, step: int) -> float:
    """Linear warm-up to the peak, then cosine decay to final_lr_ratio of it."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


class Trainer:
    """Trains `model` in place of `steps` updates; afterwards `model` holds the EMA weights.

    `identity` is what must not change between a run and its resumption (the whole config); a mismatch is refused. Of the
    data-parallel processes of one run only the first `writes` checkpoints and logs.
    """

    def __init__(
        self, model: nn.Module, config: OptimConfig, folder: Path, identity: dict[str, object], *, writes: bool = True
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
        self.step = 0

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for index, parameter in enumerate(self.parameters):
            state = self.optimizer.state[parameter]
            tensors |= {f"{index}.weight": parameter.detach(), f"{index}.ema": self.average[index],
                        f"{index}.exp_avg": state["exp_avg"], f"{index}.exp_avg_sq": state["exp_avg_sq"]}
        return tensors

    def save(self) -> None:
        """Write the training checkpoint; the header, written last, names the update it belongs to.

        Raises WorkError, and leaves the last checkpoint, if a weight is not finite.
        """
        for parameter in self.parameters:
            self._check_finite("largest weight", float(parameter.detach().abs().max()))
        if not self.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        header = {"step": self.step, "identity": self.identity}
        data = save(self._tensors(), metadata={"step": str(self.step)})
        write_atomic(self.folder / STATE_FILE, data)
        write_atomic(self.folder / HEADER_FILE, json.dumps(header, indent=2, sort_keys=True).encode())

    def resume(self) -> bool:
        """Load the training checkpoint if there is one. Raises InputError if it belongs to another config."""
        state_file, header_file = self.folder / STATE_FILE, self.folder / HEADER_FILE
        if not (state_file.is_file() and header_file.is_file()):
            return False
        try:
            old = json.loads(header_file.read_text())["identity"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{header_file}: unreadable training checkpoint; remove the folder") from None
        differing = differences(old, json.loads(json.dumps(self.identity)))
        if differing:
            raise InputError(f"{self.folder}: holds a run of another config; give another --out, remove the folder, "
                             "or make these equal: " + "; ".join(differing))
        try:
            tensors = load_file(state_file)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{state_file}: unreadable training checkpoint ({error}); remove the folder") from None
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"{index}.weight"])
                self.average[index].copy_(tensors[f"{index}.ema"])
                device = parameter.device
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(0.0, device=device), "exp_avg": tensors[f"{index}.exp_avg"].to(device),
                    "exp_avg_sq": tensors[f"{index}.exp_avg_sq"].to(device),
                }
            # The tensors' own step rules: a crash between the two files leaves newer tensors under an older header.
            self.step = _state_step(state_file)
            for state in self.optimizer.state.values():
                state["step"].fill_(float(self.step))
        return True

    def update(self, loss_at: LossAt) -> tuple[float, float]:
        """One update. Returns loss and gradient norm. Raises WorkError on a loss that is not finite."""
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(_mixed(self.config.seed, DROPOUT_STREAM + self.step))
        losses = loss_at(self.step, generator_of(self.config.seed, self.step))
        self.optimizer.zero_grad(set_to_none=True)
        value = 0.0
        for loss in [losses] if isinstance(losses, Tensor) else losses:
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
        if not math.isfinite(value):
            raise WorkError(f"the {name} is {value} at update {self.step}; the last checkpoint in {self.folder} is kept; "
                            "lower optim.lr or optim.clip and start a new --out")

    def run(self, loss_at: LossAt, report: Report, gauges: Gauges = dict) -> bool:
        """Train from the current update to the last, with checkpoints, log lines and TensorBoard scalars.

        `gauges` gives further scalars whenever a line is due. Returns False if `report` asked to stop before the last update:
        then a checkpoint was written, and `model` holds the weights as they are.
        """
        writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step) if self.writes else None
        window: list[float] = []
        self.model.train()
        stop = False
        while self.step < self.config.steps and not stop:
            value, norm = self.update(loss_at)
            window.append(value)
            last = self.step == self.config.steps
            if last or self.step % self.config.log_every == 0:
                scalars = {"loss": sum(window) / len(window), "gradient_norm": norm,
                           "lr": learning_rate(self.config, self.step - 1), **gauges()}
                window.clear()
                if writer:
                    for name, scalar in scalars.items():
                        writer.add_scalar(name, scalar, self.step)
                stop = bool(report(self.step, scalars))
            if last or stop or self.step % self.config.checkpoint_every == 0:
                self.save()
        if writer:
            writer.close()
        if self.step < self.config.steps:
            return False
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
        self.model.eval()
        return True


def _state_step(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(os.fspath(path), framework="pt") as file:
        return int(file.metadata()["step"])


class TokenWindows:
    """Windows of L tokens of one stream: the batch of update s is a pure function of (seed, s).

    Every epoch shifts the windows by a random offset and shuffles them.
    """

    def __init__(self, stream: Tensor, length: int, batch_size: int, seed: int) -> None:
        if len(stream) < 2 * length:
            raise InputError(f"the corpus has {len(stream)} tokens, fewer than two windows of {length}; give more text")
        self.stream, self.length, self.batch_size, self.seed = stream, length, batch_size, seed
        self.windows = len(stream) // length - 1
        self._epoch, self._offset, self._order = -1, 0, torch.empty(0, dtype=torch.long)

    def batch(self, step: int) -> Tensor:
        """[batch_size, L] int64."""
        rows = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return torch.stack([self._window(int(row)) for row in rows])

    def _window(self, row: int) -> Tensor:
        epoch, index = divmod(row, self.windows)
        if epoch != self._epoch:
            generator = generator_of(self.seed, EPOCH_STREAM + epoch)
            self._offset = int(torch.randint(self.length, (), generator=generator))
            self._order = torch.randperm(self.windows, generator=generator)
            self._epoch = epoch
        start = int(self._order[index]) * self.length + self._offset
        return self.stream[start : start + self.length].long()
