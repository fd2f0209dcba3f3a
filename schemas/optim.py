"""How a network is optimised: the part of the config that all trainers share."""

from pydantic import Field

from tsdfm.schemas.base import Frozen


class OptimConfig(Frozen):
    """AdamW with linear warm-up, cosine decay, gradient clipping and an average (EMA) of the weights.

    `steps` are optimiser updates; the flag is `--updates`, for steps elsewhere are those of the time grid.
    """

    steps: int = Field(2000, ge=1, description="Optimiser updates")
    batch_size: int = Field(64, ge=1, description="Sequences per update")
    lr: float = Field(2e-3, gt=0, description="Peak learning rate")
    warmup: int = Field(100, ge=0, description="Updates over which the learning rate rises to its peak")
    final_lr_ratio: float = Field(0.05, ge=0, le=1, description="Learning rate at the end, as a share of the peak")
    weight_decay: float = Field(0.05, ge=0, description="Decoupled weight decay of the matrices")
    beta2: float = Field(0.98, gt=0, lt=1, description="Decay of AdamW's second moment")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient; longer ones are shortened to it")
    ema: float = Field(0.998, ge=0, lt=1, description="Decay of the averaged weights, which are what is saved")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of weights, batches and noise")
    threads: int = Field(1, ge=1, description="CPU threads")
    log_every: int = Field(20, ge=1, description="Updates between lines of progress and of TensorBoard")
    checkpoint_every: int = Field(200, ge=1, description="Updates between checkpoints, from which a killed run goes on")
