"""The config of `tsdfm-pipeline generate`: what to roll out, how to shape it, and how to run it."""

from typing import Any

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer, model_validator

from tsdfm.schemas.base import Frozen, without_newer
from tsdfm.schemas.extent import Overlap
from tsdfm.schemas.paths import PathName
from tsdfm.schemas.prompts import PROMPT_FIELD, PromptField, PromptFile, PromptGaps, refuse_idle
from tsdfm.schemas.terms import Arms, Clocks, Dtype, Form, Level, Select, Solver, Source


class RolloutConfig(Frozen):
    """How the teacher is rolled out, shaped or not."""

    steps: int = Field(64, ge=1, le=65536, description=(
        "Steps N of the time grid 0, 1/N, ..., 1: a text is written in at most so many jumps"))
    length: int | None = Field(None, ge=1, le=65536, description=(
        "Tokens L of every text; more than the model was trained on are written in blocks; null: as many as that"))
    temperature: float = Field(1.0, gt=0, le=10, description=(
        "Divides the model's logits: below 1 it writes safer and duller texts, above 1 wilder ones"))
    solver: Solver = Field("euler", description=(
        "How the posterior of a step is computed: 'euler' takes it at the step's start, 'rk4' averages four stages, "
        "'rk4_chained' is the predecessor's variant of that"))
    clocks: Clocks | None = Field(None, description=(
        "Which positions are written together: 'independent' leaves it to chance; 'spaced' spreads them evenly over the text, "
        "at no cost and with the same law for each position; 'even', of the uniform source only, also spreads the redrawing of "
        "each position over the steps, which is not the path's law any more; null: what the model was trained for"))
    top_k: int = Field(0, ge=0, le=1024, description=(
        "Keep the model's k likeliest tokens and their log-probabilities with every jump; 0 keeps none"))
    logprobs: bool = Field(False, description=(
        "Keep the model's log-probability of every candidate with every jump, which 'distill --objective tilt' needs"))
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of all noise: the same seed gives the same texts")
    batch_size: int = Field(32, ge=1, le=65536, description="Texts computed together; more need more memory")
    threads: int = Field(1, ge=1, le=1024, description=(
        "CPU threads of a worker; part of a dataset's identity, for they can move the last bits"))
    dtype: Dtype = Field("float32", description=(
        "Numbers that the networks hold their weights in and compute with: 'bfloat16' is for GPUs, faster and coarser; "
        "log-probabilities, draws, energies and choices are float32 at least in either"))
    compile: bool = Field(False, description=(
        "Compile the model's blocks (torch.compile): a slow start, other last bits"))

    @model_serializer(mode="wrap")
    def _without_newer(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_newer(handler(self), info, dtype="float32", compile=False, clocks=None, logprobs=False)

    @property
    def times(self) -> tuple[float, ...]:
        """The N + 1 times 0, 1/N, ..., 1 of the rollout, ends exact."""
        return tuple(step / self.steps for step in range(self.steps + 1))


class ShapingConfig(Frozen):
    """How the compass chooses among candidate jumps."""

    candidates: int = Field(8, ge=1, le=127, description=(
        "Candidate jumps K that are drawn at every shaped step, of which the compass keeps one; 1 leaves no choice"))
    tau: float = Field(0.0, ge=0, le=1, description=(
        "The time tau from which the compass chooses: steps that start before it are blind. 0 shapes all of a text, 1 nothing"))
    shape_every: int = Field(1, ge=1, lt=2**31, description="Shape only every so many steps")
    select: Select = Field("argmin", description=(
        "How a candidate is chosen by its energy E (lower is more coherent): 'argmin' keeps the lowest, 'resample' draws one "
        "with probability proportional to exp(-beta E)"))
    beta: float = Field(1.0, ge=0, le=1e9, description=(
        "Inverse temperature beta of 'resample', per nat/token of energy: the larger, the closer to 'argmin'"))
    form: Form | None = Field(None, description=(
        "Form of the energy: 'plain', or 'residual', which adds the teacher's own log-probability of the drawn tokens, so that "
        "exp(-E) is an importance weight; null: residual for 'resample', plain for 'argmin'"))
    level: Level = Field("sequence", description=(
        "What is chosen: 'sequence' keeps one whole candidate, the tokens of all positions that jump together, and scores K "
        "texts a step; 'token' chooses at each of these positions by itself, and scores one text a step; 'sequence_to_token' "
        "begins with the first and goes over to the second"))
    token_from: float = Field(0.5, ge=0, le=1, description="The time from which 'sequence_to_token' chooses by token")
    sweeps: int = Field(1, ge=1, le=8, description=(
        "How often the choice by token is made, and a text scored: in the first sweep each position sees candidate 0 of its "
        "neighbours, in a later one what these chose in the sweep before"))

    @model_serializer(mode="wrap")
    def _without_newer(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_newer(handler(self), info, level="sequence", token_from=0.5, sweeps=1)

    @model_validator(mode="after")
    def _says_nothing_idle(self) -> "ShapingConfig":
        if self.sweeps != 1 and self.level == "sequence":
            raise ValueError("sweeps: belongs to the choice by token; set another level, or leave it out")
        if self.token_from != 0.5 and self.level != "sequence_to_token":
            raise ValueError("token_from: belongs to level 'sequence_to_token'; set that, or leave it out")
        return self

    def steps_of(self, rollout: RolloutConfig) -> tuple[int, ...]:
        """The steps of a rollout that a compass shapes, rising: those that start at t >= tau, every `shape_every`-th of all."""
        starts = enumerate(rollout.times[:-1])
        return tuple(step for step, t in starts if t >= self.tau and step % self.shape_every == 0)

    def token_steps_of(self, rollout: RolloutConfig) -> tuple[int, ...]:
        """Those of `steps_of` at which every position chooses by itself."""
        start = {"sequence": 2.0, "token": 0.0, "sequence_to_token": self.token_from}[self.level]
        return tuple(step for step in self.steps_of(rollout) if rollout.times[step] >= start)

    def sequence_steps_of(self, rollout: RolloutConfig) -> tuple[int, ...]:
        """Those of `steps_of` at which one whole candidate is chosen."""
        by_token = set(self.token_steps_of(rollout))
        return tuple(step for step in self.steps_of(rollout) if step not in by_token)

    @property
    def residual(self) -> bool:
        """Whether the residual form is used."""
        return self.form == "residual" or (self.form is None and self.select == "resample")


class GenerateConfig(Frozen):
    """`tsdfm-pipeline generate`: a frozen dataset of trajectories. Every field is also a flag."""

    out: PathName | None = Field(None, description="Folder of the dataset: a local path or a filesystem URI")
    trajectories: int | None = Field(None, ge=1, lt=2**31, description=(
        "How many trajectories to make: each is one text being written, or a block of a longer one; null: 256, or with "
        "--prompts --per-prompt of each"))
    teacher: PathName = Field("embedded", description=(
        "The model that is rolled out: 'embedded' (a small one that ships with the package), 'embedded:uniform', a folder, "
        "or hub:USER/NAME[@REVISION]"))
    source: Source | None = Field(None, description=(
        "What a text starts from: all [MASK] ('mask') or random tokens ('uniform'); chooses the embedded teacher, and must be "
        "any other's own; null: mask for 'embedded', else the teacher's own"))
    compass: PathName = Field("embedded", description=(
        "The model that scores candidate jumps: 'embedded', 'none', 'denoiser' (the teacher's own pseudo-likelihood), or the "
        "folder of a compass or of any causal LM of the same vocabulary, or hub:USER/NAME[@REVISION]"))
    arm: Arms = Field("shaped", description=(
        "Which trajectories to make: 'shaped' (the compass chooses), 'blind' (the teacher alone), or 'both', paired by "
        "their noise"))
    prompts: PromptFile = None
    prompt_field: PromptField = PROMPT_FIELD
    prompt_gaps: PromptGaps = False
    per_prompt: int = Field(1, ge=1, lt=2**31, description=(
        "Trajectories of each prompt of --prompts: trajectory i is of prompt i // per_prompt, counted from 0"))
    overlap: Overlap = None
    rollout: RolloutConfig = RolloutConfig()
    shaping: ShapingConfig = ShapingConfig()
    shard_size: int = Field(64, ge=1, le=10**7, description=(
        "Trajectories that are made together, the unit of work: an interrupt waits for it, a crash costs at most that"))
    shards_per_file: int | None = Field(None, ge=1, le=10**6, description=(
        "Units of work in one Parquet file; null: what OUT already has, else one in datasets of up to 1,000 units, and as many "
        "as make files of about 128 MB in larger ones"))
    workers: int | None = Field(None, ge=1, le=100_000, description=(
        "Processes that make shards at the same time; null: one per CPU core or GPU"))
    address: str = Field("local", min_length=1, description=(
        "Where to run: 'local' starts Ray on this machine, 'auto' finds a running cluster, 'HOST:PORT' or 'ray://HOST:PORT' "
        "names one"))

    @model_validator(mode="after")
    def _shaped_needs_compass(self) -> "GenerateConfig":
        if self.compass == "none" and self.arm != "blind" and self.shaping.candidates > 1:
            raise ValueError(f"arm '{self.arm}' needs a compass; give compass a folder or 'embedded', or set arm to 'blind'")
        return self

    @model_validator(mode="after")
    def _settings_of_prompts_need_them(self) -> "GenerateConfig":
        refuse_idle(self.prompts, per_prompt=self.per_prompt > 1, prompt_gaps=self.prompt_gaps,
                    prompt_field=self.prompt_field != PROMPT_FIELD)
        return self
