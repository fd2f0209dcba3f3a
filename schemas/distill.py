"""The config of `tsdfm-pipeline distill`: which trajectories, which objective, and how to train on them."""

from typing import Annotated, Any

from pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_serializer,
    model_validator,
)

from tsdfm.schemas.base import Frozen, without_newer
from tsdfm.schemas.corpus import CorpusConfig
from tsdfm.schemas.optim import Divided, OptimConfig
from tsdfm.schemas.paths import PathName
from tsdfm.schemas.terms import Arm, Objective

KL_OBJECTIVES = ("forward_kl", "reverse_kl")
CANDIDATE_OBJECTIVES = ("candidates", "tilt")  # which look at all K candidates of a jump


def _budgets(value: Any, validated: ValidatorFunctionWrapHandler) -> dict[int, float]:
    """Step counts, also those written '1,2,8:0.5' as {1: 1, 2: 1, 8: 0.5}; 8, '8' and '08' are the same one."""
    as_given = given = value
    if isinstance(value, str | int):
        try:
            pairs = [(int(n), float(weight or 1)) for n, _, weight in (part.partition(":") for part in str(value).split(","))]
        except ValueError:
            raise ValueError(f"{value!r} is not a list of step counts; write 1,2,4,8 or, with weights, 4:1,8:2") from None
        given, value = pairs, dict(pairs)
    budgets: dict[int, float] = validated(value)
    if len(budgets) < len(given):
        raise ValueError(f"in {as_given!r} a step count stands twice; give each once")
    return budgets


Weight = Annotated[float, Field(gt=0, le=1e9)]  # beside others: their sum is a number, too
Budgets = Annotated[
    dict[Annotated[int, Field(ge=1, le=65536)], Weight],
    WrapValidator(_budgets, json_schema_input_type=Any)]


class DataConfig(Frozen):
    """Which frozen trajectories to read, and in what order."""

    paths: list[PathName] = Field(default_factory=list, description=(
        "Dataset to learn from: a local folder, a filesystem URI, or hf://datasets/USER/NAME@REVISION; give several to "
        "mix them"))
    weights: list[Weight] | None = Field(None, description=(
        "Share of each dataset in every batch, up to a common factor, one for each; null: by their numbers of trajectories"))
    arm: Arm = Field("shaped", description=(
        "Which trajectories: 'shaped' (the compass chose the jumps) or 'blind' (the teacher alone)"))
    trajectories: int | None = Field(None, ge=1, lt=2**63, description="Read only trajectory ids below this; null: all")
    held_out: float = Field(0.0, ge=0, lt=1, description=(
        "Share of each dataset's trajectories, its last ones, that is not learnt from but measured: their loss, and how much "
        "of the compass's preference the student carries, stand in every log line"))
    best: float | None = Field(None, gt=0, le=1, description=(
        "Keep only this fraction of each dataset's trajectories, those of the lowest final energy; null: all"))
    energy_beta: float = Field(0.0, ge=0, le=1e9, description=(
        "Weigh each trajectory's loss by exp(-this times its final energy in nats/token); 0 weighs all alike"))
    group: int = Field(8, ge=1, le=4096, description="Shards that are read and shuffled together; memory grows with it")
    loader_workers: int = Field(0, ge=0, le=256, description=(
        "Processes that build batches ahead; with 0 the training process builds them itself"))

    @model_serializer(mode="wrap")
    def _without_newer(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_newer(handler(self), info, held_out=0.0)

    @model_validator(mode="after")
    def _one_weight_each(self) -> "DataConfig":
        if self.weights is not None and len(self.weights) != len(self.paths):
            raise ValueError(f"weights: {len(self.weights)} given for {len(self.paths)} datasets; give one each, or none")
        return self


class RealConfig(Frozen):
    """A denoising loss on real text, mixed in."""

    weight: float = Field(0.0, ge=0, le=1e6, description=(
        "Weight of a denoising loss on real text that is added to the objective; 0 adds none"))
    corpus: CorpusConfig = CorpusConfig()


class DistillOptim(OptimConfig):
    """The optimiser's defaults for a student, which starts from a trained model."""

    steps: int = Field(2000, ge=1, lt=2**31, description="Optimiser updates")
    batch_size: int = Field(32, ge=1, lt=2**31, description="Trajectories per update, over all workers")
    lr: float = Field(5e-4, gt=0, description="Peak learning rate")
    warmup: int = Field(50, ge=0, lt=2**31, description="Updates over which the learning rate rises to its peak")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of the matrices")
    ema: float = Field(0.99, ge=0, lt=1, description="Decay of the averaged weights, which are what is saved")


class DistillConfig(Divided):
    """`tsdfm-pipeline distill`: train a few-step student from frozen shards. Every field is also a flag."""

    data: DataConfig = DataConfig()
    init: PathName | None = Field(None, description=(
        "The weights to start from: 'embedded', 'embedded:uniform', a folder, or hub:USER/NAME[@REVISION]; null: the "
        "teacher that the dataset names"))
    init_blocks: int | None = Field(None, ge=1, le=256, description=(
        "Start from only so many of those weights' blocks, evenly spaced: a smaller student; null: all of them"))
    objective: Objective = Field("event", description=(
        "What the student is fitted to: 'event' the token that a window's last jump wrote, 'candidates' the mixture of the K "
        "candidates by their energies, 'endpoint' the final token, 'tilt' only how far the compass prefers one candidate to "
        "another, beyond how likely they were drawn; 'forward_kl' and 'reverse_kl' the teacher's stored top-k, which forgets "
        "what the compass chose"))
    beta: float = Field(64.0, ge=0, le=1e9, description=(
        "Inverse temperature of 'candidates' and 'tilt': weights are softmax(-beta E) of the energies E in nats/token"))
    event_weight: float = Field(0.0, ge=0, le=1e6, description="Weight of 'event' that is added to the objective 'tilt'")
    budgets: Budgets | None = Field(None, min_length=1, description=(
        "Step budgets to train for, e.g. 1,2,4,8, or 8:2,16:1 with how often each is trained; each divides the dataset's "
        "steps; null: 1, 2, 4, ..., 64, as far as they divide, equally often"))
    alike: bool = Field(False, description=(
        "Every window counts alike, however many of its positions jump: the loss is the mean over windows of their means; "
        "otherwise every position does"))
    patience: int | None = Field(None, ge=1, lt=2**31, description=(
        "Stop when the held-out loss has not fallen for so many log lines, and keep the weights of its lowest; null: never"))
    interpolate: float = Field(1.0, gt=0, le=1, description=(
        "Where the student's weights lie between those that it started from (0) and the trained ones (1): below 1 it keeps "
        "more of what the teacher knows and few trajectories don't show"))
    real: RealConfig = RealConfig()
    optim: DistillOptim = DistillOptim()

    @model_serializer(mode="wrap")
    def _without_newer(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_newer(handler(self), info, tracker="none", event_weight=0.0, alike=False, patience=None,
                             interpolate=1.0)

    @model_validator(mode="after")
    def _says_nothing_idle(self) -> "DistillConfig":
        if self.event_weight and self.objective != "tilt":
            raise ValueError("event_weight: belongs to objective 'tilt'; set that, or leave it out")
        if self.patience is not None and not self.data.held_out:
            raise ValueError("patience: needs trajectories that are held out; set data.held_out to 0.05, say, or leave it out")
        return self
