"""How a network is optimised, on how many processes, and who looks on: what the configs of all trainers share."""

from typing import Any, Literal, Self

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer, model_validator

from tsdfm.schemas.base import Frozen, without_newer

HELD_OUT_LOSS = "held_out/loss"  # the scalar of a training by which it ends early, where it has patience
HELD_OUT_AUC = "held_out/auc"  # how well a compass separates; with _ and a range of t behind it, in that alone
Tracker = Literal["none", "wandb", "trackio", "mlflow"]


class OptimConfig(Frozen):
    """AdamW with linear warm-up, cosine decay, gradient clipping and an average (EMA) of the weights.

    `steps` are optimiser updates; the flag is `--updates`, for steps elsewhere are those of the time grid.
    """

    steps: int = Field(2000, ge=1, lt=2**31, description="Optimiser updates")
    batch_size: int = Field(64, ge=1, lt=2**31, description="Sequences per update")
    lr: float = Field(2e-3, gt=0, description="Peak learning rate")
    warmup: int = Field(100, ge=0, lt=2**31, description="Updates over which the learning rate rises to its peak")
    final_lr_ratio: float = Field(0.05, ge=0, le=1, description="Learning rate at the end, as a share of the peak")
    weight_decay: float = Field(0.05, ge=0, description="Decoupled weight decay of the matrices")
    beta2: float = Field(0.98, gt=0, lt=1, description="Decay of AdamW's second moment")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient; longer ones are shortened to it")
    ema: float = Field(0.998, ge=0, lt=1, description="Decay of the averaged weights, which are what is saved")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of weights, batches and noise")
    threads: int = Field(1, ge=1, le=1024, description="CPU threads")
    log_every: int = Field(20, ge=1, lt=2**31, description="Updates between lines of progress and of TensorBoard")
    checkpoint_every: int = Field(200, ge=1, lt=2**31, description=(
        "Updates between checkpoints, from which a killed run goes on"))


class Divided(Frozen):
    """What the configs of all trainings share: how their updates are divided among processes and parts, and computed.

    None of it changes a result but for its last bits.
    """

    optim: OptimConfig = OptimConfig()
    micro_batches: int = Field(1, ge=1, le=65536, description=(
        "Parts that a batch is computed in, one after another: less memory, the same result"))
    workers: int = Field(1, ge=1, le=100_000, description="Data-parallel processes, among which every batch is divided")
    address: str = Field("local", min_length=1, description=(
        "Where to run: 'local' on this machine (several workers on a Ray of their own), 'auto' finds a running cluster, "
        "'HOST:PORT' or 'ray://HOST:PORT' names one"))
    compile: bool = Field(False, description=(
        "Compile the network's blocks (torch.compile): a slow start, other last bits"))
    recompute: bool = Field(False, description=(
        "Keep no activations inside the network's blocks and compute them again for the gradient: less memory, more work, the "
        "same result"))
    tracker: Tracker = Field("none", description=(
        "Where the scalars that TensorBoard gets are sent as well, through the tracker's own client, which is installed by the "
        "extra of its name"))

    @property
    def alone(self) -> bool:
        """Whether the training is the process that it is asked of, without Ray: one worker on this machine."""
        return self.workers == 1 and self.address == "local"

    @model_serializer(mode="wrap")
    def _without_newer(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_newer(handler(self), info, tracker="none")

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        parts = self.workers * self.micro_batches
        if self.optim.batch_size % parts:
            raise ValueError(f"optim.batch_size: {self.optim.batch_size} is no multiple of workers * micro_batches ({parts}); "
                             "change one of them")
        return self


DIVISION: dict[str, Any] = dict.fromkeys(("micro_batches", "workers", "address", "compile", "recompute", "tracker"), True)
