"""`tsdfm-pipeline ablate`: a sweep over what a student is distilled from and how, and the table it ends in."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, model_validator

from tsdfm.schemas.base import Frozen
from tsdfm.schemas.corpus import CorpusConfig
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.evaluate import EvaluateConfig, Names, Perplexity, Steps, Temperatures

NOT_VARIED = {"optim.seed": "list the seeds under 'seeds'", "workers": "a trial runs in one process",
              "address": "it changes no result, and all trials share one cluster", "micro_batches": "it changes no result"}


class TrialConfig(DistillConfig):
    """One trial: `distill`'s config, and how often it is done in a row."""

    rounds: int = Field(1, ge=1, le=100, description=(
        "Distillations in a row from the same shards, each starting from the student of the one before"))


class Evaluation(Frozen):
    """How every trial is measured; see `evaluate`. The seed is not the trajectories', whose noise the students saw."""

    steps: Steps = Field((1, 2, 4, 8), description="step counts n; each student is sampled at each")
    evaluator: Names = ("embedded",)
    samples: int = Field(256, ge=2, lt=2**31, description="texts per row")
    temperatures: Temperatures = Field((1.0,), description="of sampling; effects are told at the highest")
    corpus: CorpusConfig = CorpusConfig()
    seed: int = Field(1, ge=0, lt=2**32, description="seed of all sampling noise, the same in all trials")

    def config(self, model: str, out: str, *, reference: bool) -> EvaluateConfig:
        """`evaluate`'s config for one model, whose files go to the folder `out`, in one thread."""
        return EvaluateConfig(
            out=out, model=(model,), steps=self.steps, evaluator=self.evaluator, samples=self.samples, corpus=self.corpus,
            temperature=max(self.temperatures), frontier=len(self.temperatures) > 1, temperatures=self.temperatures,
            reference=reference, seed=self.seed, threads=1)


Level = Any  # of a factor: a value of its field, or of a record's fields


def _fields(name: str, level: Level) -> Iterator[str]:
    """The dotted names of all fields that a level sets."""
    yield name
    if isinstance(level, dict):
        for inner, value in level.items():
            yield from _fields(f"{name}.{inner}", value)


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class Sweep(Frozen):
    """A sweep: every combination of the levels of `factors`, or the `trials` as they are listed, each once per seed."""

    name: Name
    question: str = Field("", description="what the sweep is to answer; heads its page")
    datasets: dict[Name, str] = Field(default_factory=dict, description=(
        "names that data.paths may give, and the 'generate' command that makes each; --data NAME=OUT says where it lies"))
    base: dict[str, Any] = Field(default_factory=dict, description=(
        "fields of distill's config, and 'rounds', that all trials share"))
    factors: dict[str, Annotated[list[Level], Field(min_length=1)]] = Field(default_factory=dict, description=(
        "dotted field, e.g. data.arm -> its levels; the first is what the others are compared with"))
    trials: list[dict[str, Level]] = Field(default_factory=list, description=(
        "in place of factors: of each trial, dotted field -> value"))
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field([0], min_length=1, description=(
        "training seeds; each trial runs with each"))
    evaluate: Evaluation = Evaluation()
    workers: int | None = Field(None, ge=1, le=100_000, description=(
        "Trials at a time, a core each; null: one per core, on a cluster as many as there is room for"))
    address: str = Field("local", min_length=1, description=(
        "Where trials run: 'local' is this machine, 'auto' finds a running Ray cluster, 'HOST:PORT' or 'ray://HOST:PORT' names "
        "one"))

    @model_validator(mode="after")
    def _grid_or_list(self) -> "Sweep":
        if bool(self.factors) == bool(self.trials):
            raise ValueError("give either factors (a grid) or trials (a list), one of them")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one stands there twice; give each once")
        levels = [(name, level) for name, levels in self.factors.items() for level in levels]
        for name, level in [*levels, *(pair for trial in self.trials for pair in trial.items())]:
            for field in _fields(name, level):
                if field in NOT_VARIED:
                    raise ValueError(f"{field} is no factor: {NOT_VARIED[field]}")
        return self

    @property
    def varied(self) -> list[str]:
        """The fields that differ between trials, in the order given."""
        return list(self.factors or dict.fromkeys(name for trial in self.trials for name in trial))


class TrialSeconds(Frozen):
    """Wall time of a trial's last attempt."""

    distill: float
    evaluate: float


class TrialRecord(Frozen):
    """trial.json, the commit of a trial, or of the evaluation of the start: no such file, not complete."""

    model: str = Field(description="folder of the model that was evaluated")
    config: TrialConfig | None = Field(None, description="null of the start, as is seconds")
    seconds: TrialSeconds | None = None


class TrialRow(Frozen):
    """One row of the table: a trial at one step count and temperature, or the model that all start from, or real text."""

    trial: str = Field(description="digest of all that the student depends on; 'start', or 'real'")
    levels: dict[str, str] = Field(description="factor -> level, as text; of others than trials, empty")
    seed: int | None = Field(description="training seed")
    steps: int | None = Field(description="step count n; null for real text, as is the temperature")
    temperature: float | None
    judges: dict[str, Perplexity]
    entropy_bits: float
    entropy_standard_error: float
    distinct_2: float
    distinct_4: float
    self_bleu: float
    nfe: float | None = Field(description="mean forward passes per text")
    parameters: int | None = Field(description="of the model")


class Effect(Frozen):
    """A level of a factor against its first level, at equal levels of all other factors and equal seeds, averaged over them."""

    factor: str
    level: str
    against: str
    steps: int
    temperature: float
    measure: str = Field(description="'log perplexity (JUDGE)' in nats, or 'entropy' in bits")
    difference: float
    low: float = Field(description="95 % bootstrap interval")
    high: float
    pairs: int = Field(description="pairs of trials it is averaged over")
