"""The config of `tsdfm-pipeline distill`: which trajectories, which objective, and how to train on them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tsdfm.schemas.base import Frozen
from tsdfm.schemas.generate import Arm
from tsdfm.schemas.train import CorpusConfig, OptimConfig

Objective = Literal["event", "candidates", "endpoint", "forward_kl", "reverse_kl"]
KL_OBJECTIVES = ("forward_kl", "reverse_kl")


Budgets = dict[Annotated[int, Field(ge=1, le=65536)], Annotated[float, Field(gt=0, allow_inf_nan=False)]]


class DataConfig(Frozen):
    """Which frozen trajectories to read, and in what order."""

    paths: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list, description=(
        "datasets: local folders, filesystem URIs, or hf://datasets/USER/NAME@REVISION"))
    weights: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = Field(None, description=(
        "share of each dataset in every batch, up to a common factor; null: by their numbers of trajectories"))
    arm: Arm = Field("shaped", description="which arm's rows")
    trajectories: int | None = Field(None, ge=1, description="only ids below this, of every dataset; null: all")
    best: float | None = Field(None, gt=0, le=1, description=(
        "keep only this fraction of each dataset's rows, those of the lowest final energy; null: all"))
    energy_beta: float = Field(0.0, ge=0, allow_inf_nan=False, description=(
        "weight of a trajectory's loss: proportional to exp(-energy_beta E) of its final energy, nats/token; 0: all alike"))
    group: int = Field(8, ge=1, le=4096, description="shards read and shuffled together; memory grows with it")
    loader_workers: int = Field(0, ge=0, le=256, description="processes that build batches ahead; 0: the training process")

    @model_validator(mode="after")
    def _one_weight_each(self) -> "DataConfig":
        if self.weights is not None and len(self.weights) != len(self.paths):
            raise ValueError(f"weights: {len(self.weights)} given for {len(self.paths)} datasets; give one each, or none")
        return self


class RealConfig(Frozen):
    """A denoising loss on real text, mixed in."""

    weight: float = Field(0.0, ge=0, allow_inf_nan=False, description="weight of the real-data loss; 0: none")
    corpus: CorpusConfig = CorpusConfig()


class DistillOptim(OptimConfig):
    """The optimiser's defaults for a student, which starts from a trained model."""

    steps: int = Field(2000, ge=1, description="number of updates")
    batch_size: int = Field(32, ge=1, description="trajectories per update, over all workers")
    lr: float = Field(5e-4, gt=0, allow_inf_nan=False, description="peak learning rate")
    warmup: int = Field(50, ge=0, description="updates of linear warm-up")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of the matrices")
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the averaged weights; these are what is saved")


class DistillConfig(Frozen):
    """`tsdfm-pipeline distill`: train a few-step student from frozen shards. Every field is also a flag or a YAML field."""

    data: DataConfig = DataConfig()
    init: str | None = Field(None, min_length=1, description=(
        "folder of the weights to start from; null: the teacher that the manifest names"))
    init_blocks: int | None = Field(None, ge=1, le=256, description=(
        "start from only so many of those weights' blocks, evenly spaced: a smaller student; null: all"))
    objective: Objective = Field("event", description="what the student is fitted to; see pipeline/objectives.py")
    beta: float = Field(64.0, ge=0, allow_inf_nan=False, description=(
        "inverse temperature of 'candidates', per nat/token of energy"))
    budgets: Budgets | None = Field(
        None, min_length=1, description=(
            "step budgets n (dt = 1/n; n divides the rollout's N) and how often each is trained; null: 1, 2, 4, ..., 64, as "
            "far as they divide N, equally often"))
    real: RealConfig = RealConfig()
    optim: DistillOptim = DistillOptim()
    micro_batches: int = Field(1, ge=1, le=65536, description="gradient accumulation: parts that a batch is computed in")
    workers: int = Field(1, ge=1, le=100_000, description="data-parallel processes; the batch is divided among them")
    address: str = Field("local", min_length=1, description="'local', 'auto', or a Ray address")

    @model_validator(mode="after")
    def _batch_divides(self) -> "DistillConfig":
        parts = self.workers * self.micro_batches
        if self.optim.batch_size % parts:
            raise ValueError(f"optim.batch_size: {self.optim.batch_size} is no multiple of workers * micro_batches ({parts}); "
                             "change one of them")
        return self
