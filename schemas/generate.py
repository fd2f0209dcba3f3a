"""The config of `tsdfm-pipeline generate`: what to roll out, how to shape it, and how to run it."""

from typing import Literal

from pydantic import Field, model_validator

from tsdfm.schemas.base import Frozen
from tsdfm.schemas.model import Source

Arm = Literal["shaped", "blind"]
Solver = Literal["euler", "rk4", "rk4_chained"]


class RolloutConfig(Frozen):
    """How the teacher is rolled out, shaped or not."""

    steps: int = Field(64, ge=1, le=65536, description="steps N of the time grid 0, 1/N, ..., 1")
    length: int | None = Field(None, ge=1, le=65536, description="sequence length L in tokens; null: the teacher's own")
    temperature: float = Field(1.0, gt=0, le=10, description="divides the teacher's logits; below 1 cools it")
    solver: Solver = Field("euler", description=(
        "'euler': the posterior at x_t; 'rk4': the four-stage average; 'rk4_chained': the predecessor's variant of it"))
    top_k: int = Field(0, ge=0, le=1024, description="teacher's posterior kept with every event as its top-k; 0: none")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of all noise (key of the Philox generator)")
    batch_size: int = Field(32, ge=1, le=65536, description="trajectories rolled out together in a worker")
    threads: int = Field(1, ge=1, le=1024, description="CPU threads of a worker; fixed, for they can move the last bits")


class ShapingConfig(Frozen):
    """How the compass chooses among candidate jumps."""

    candidates: int = Field(8, ge=1, le=127, description="K candidates per shaped step; 1: no choice, i.e. blind")
    tau: float = Field(0.0, ge=0, le=1, description="steps that start at t >= tau are shaped")
    shape_every: int = Field(1, ge=1, description="shape every so many steps")
    select: Literal["argmin", "resample"] = Field("argmin", description="keep the lowest energy, or draw by exp(-beta E)")
    beta: float = Field(1.0, ge=0, description="inverse temperature of 'resample', per unit of energy")
    form: Literal["plain", "residual"] | None = Field(None, description=(
        "'residual' adds the proposal's log-probability of the drawn tokens to the energy, so that exp(-E) is an importance "
        "weight; null: residual for 'resample', plain for 'argmin'"))

    @property
    def residual(self) -> bool:
        """Whether the residual form is used."""
        return self.form == "residual" or (self.form is None and self.select == "resample")


class GenerateConfig(Frozen):
    """`tsdfm-pipeline generate`: a frozen dataset of trajectories. Every field is also a flag."""

    out: str | None = Field(None, min_length=1, description="folder of the dataset: a local path or a filesystem URI")
    trajectories: int = Field(256, ge=1, lt=2**31, description="number of trajectory ids")
    teacher: str = Field("embedded", min_length=1, description="'embedded', or the folder of a denoiser")
    source: Source | None = Field(None, description="which embedded teacher ('mask' by default); else the teacher's own")
    compass: str = Field("embedded", min_length=1, description=(
        "'embedded', 'none', 'denoiser' (the teacher's own pseudo-likelihood), or the folder of a compass or causal LM"))
    arm: Literal["shaped", "blind", "both"] = Field("shaped", description="'both' writes each trajectory twice, paired")
    rollout: RolloutConfig = RolloutConfig()
    shaping: ShapingConfig = ShapingConfig()
    shard_size: int = Field(64, ge=1, le=10**7, description="trajectory ids per Parquet shard")
    workers: int | None = Field(None, ge=1, le=100_000, description="Ray actors; null: one per CPU core or GPU")
    address: str = Field("local", min_length=1, description="'local', 'auto', or a Ray address")

    @model_validator(mode="after")
    def _shaped_needs_compass(self) -> "GenerateConfig":
        if self.compass == "none" and self.arm != "blind" and self.shaping.candidates > 1:
            raise ValueError(f"arm '{self.arm}' needs a compass; give compass a folder or 'embedded', or set arm to 'blind'")
        return self
