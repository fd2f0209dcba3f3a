"""`tsdfm-pipeline evaluate`: its config, and the results it writes to OUT/results.json."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from tsdfm.schemas.base import Frozen, without_newer
from tsdfm.schemas.corpus import CorpusConfig
from tsdfm.schemas.extent import Overlap, StopsAt
from tsdfm.schemas.frontier import Compared
from tsdfm.schemas.measures import Bound, Distances, Memorised
from tsdfm.schemas.paths import PathName
from tsdfm.schemas.prompts import PROMPT_FIELD, PromptField, PromptFile, refuse_idle
from tsdfm.schemas.protocols import PROTOCOLS, Protocol
from tsdfm.schemas.terms import Clocks, Dtype, Texts


def _several(value: Any) -> Any:
    """One value, or a list of values."""
    return [value] if isinstance(value, str | int | float) else value


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Values without their repetitions."""
    return tuple(dict.fromkeys(values))


def _numbers(value: Any) -> Any:
    """A list of numbers, or one written '1,2,4'."""
    return _several([part for part in value.replace(" ", "").split(",") if part] if isinstance(value, str) else value)


Names = Annotated[tuple[PathName, ...], BeforeValidator(_several), AfterValidator(_once), Field(min_length=1)]
Steps = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65536)], ...], BeforeValidator(_numbers), AfterValidator(_once), Field(min_length=1)]
Temperature = Annotated[float, Field(gt=0, le=10)]
Temperatures = Annotated[tuple[Temperature, ...], BeforeValidator(_numbers), AfterValidator(_once), Field(min_length=1)]


class EvaluateConfig(Frozen):
    """`tsdfm-pipeline evaluate`: sample models at several step counts and measure the texts. Every field is also a flag."""

    out: PathName | None = Field(None, description=(
        "Folder that keeps samples, scores and results, from which a rerun goes on; null: nothing is kept"))
    protocol: Protocol | None = Field(None, description=(
        "Defaults by which figures compare with those of papers; what is given besides goes first. 'owt-1024': 1,024 texts of "
        "1,024 tokens in 8 to 1,024 steps, judged by GPT-2 large; real text only with --corpus; null: none"))
    model: Names = Field(("embedded",), description=(
        "Model to sample: 'embedded', 'embedded:uniform', the folder of a teacher or student, or hub:USER/NAME[@REVISION]; may "
        "be repeated"))
    steps: Steps = Field((1, 2, 4, 8, 16), description="Step counts n: each model writes texts in each")
    evaluator: Names = Field(("embedded",), description=(
        "Judge, a language model that had no part in making the texts: 'embedded', a folder (of this project or of "
        "transformers), a .gguf file, or hub:USER/NAME[@REVISION]; may be repeated"))
    length: int | None = Field(None, ge=1, le=65536, description=(
        "Tokens of every text, real ones too; more than a model's are written in blocks; null: as many as each model was "
        "trained on"))
    until: StopsAt = None
    overlap: Overlap = None
    samples: int = Field(256, ge=2, lt=2**31, description="Texts per row of the table; intervals need at least two")
    temperature: Temperature = Field(1.0, description="Divides the model's logits while sampling")
    frontier: bool = Field(False, description=(
        "Sweep the sampling temperature and draw the frontier: perplexity against entropy, for a model that is only cooler has "
        "lower perplexity, too"))
    temperatures: Temperatures = Field((0.6, 0.7, 0.8, 0.9, 1.0, 1.1), description="Temperatures of the frontier")
    against: PathName | None = Field(None, description=(
        "Model, of those named, that all others are set against where temperatures are swept: their perplexity over its own at "
        "the temperature that makes its texts as diverse; null: the first that is named"))
    reference: bool = Field(True, description="Measure real held-out text, too")
    naive: bool = Field(False, description=(
        "Measure naive samplers, too, which are made from the corpus's training text and are known to be bad: a measure that "
        "ranks them beside real text can't tell"))
    memorisation: bool = Field(True, description=(
        "Look for the texts' 8-grams in what models were trained on: in the corpus's training text, if real text or naive "
        "samplers are measured, and those of a student in the final texts of the trajectories that it learnt from"))
    trajectories_of: Names | None = Field(None, description=(
        "Dataset of trajectories to look for the texts' 8-grams in: where a student's own lies now, else of teachers and real "
        "text, which are looked for in all that are named; may be repeated; null: a student's own, where its record says"))
    distances: bool = Field(False, description=(
        "Measure how far the texts of each row are from real held-out text as a set, too: MAUVE and a Fréchet distance on the "
        "judges' features"))
    likelihood: bool = Field(False, description=(
        "Bound how likely the models find real held-out text, too: in continuous time (teachers) and in each number of steps"))
    text: PathName | None = Field(None, description=(
        "File whose likelihood is bounded in place of held-out text's, with or without --likelihood: any that a corpus may be; "
        "null: held-out text"))
    sampling: bool = Field(True, description=(
        "Sample the models and judge texts; without, the bounds of --likelihood are all there is"))
    prompts: PromptFile = None
    prompt_field: PromptField = PROMPT_FIELD
    prompt_tokens: int | None = Field(None, ge=1, le=65536, description=(
        "Take as prompts the first so many tokens of held-out texts, and measure how these go on beside what models write; all "
        "figures are then of what stands after a prompt; null: none, or --prompts"))
    corpus: CorpusConfig = CorpusConfig()
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of all sampling noise")
    batch_size: int = Field(32, ge=1, le=65536, description="Texts sampled together; more need more memory")
    threads: int | None = Field(None, ge=1, le=1024, description=(
        "CPU threads; null: torch's own choice on this machine, one on a cluster"))
    address: str = Field("local", min_length=1, description=(
        "Where to sample and judge: 'local' is this process, 'auto' finds a running Ray cluster, 'HOST:PORT' or "
        "'ray://HOST:PORT' names one, over whose nodes models, step counts and temperatures are spread"))
    clocks: Clocks | None = Field(None, description=(
        "Which positions are written together: 'independent', 'spaced' (evenly over the text), or 'even', of the uniform "
        "source; null: for each model what it was trained for"))
    dtype: Dtype = Field("float32", description=(
        "Numbers that the sampled models hold their weights in and compute with: 'bfloat16' is for GPUs, faster and coarser; "
        "draws are float32 in either, and so are judges"))
    compile: bool = Field(False, description=(
        "Compile the sampled models' blocks (torch.compile): a slow start, other last bits"))

    @model_validator(mode="before")
    @classmethod
    def _by_protocol(cls, data: Any) -> Any:
        """Fields that are not given are those of the protocol."""
        if not isinstance(data, dict) or data.get("protocol") not in PROTOCOLS:
            return data
        real = {} if "corpus" in data else {"reference": False}
        return {**PROTOCOLS[data["protocol"]], **real, **data}

    @model_serializer(mode="wrap")
    def _without_newer(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        if self.protocol is not None:  # every field is written, else it would be the protocol's when it is read
            return dict(handler(self))
        return without_newer(handler(self), info, protocol=None, dtype="float32", compile=False, address="local", clocks=None,
                             naive=False, memorisation=True, trajectories_of=None, length=None, distances=False,
                             likelihood=False, text=None, sampling=True, until=None, overlap=None, prompts=None,
                             prompt_field=PROMPT_FIELD, prompt_tokens=None, against=None)

    @model_validator(mode="after")
    def _frontier_needs_out(self) -> "EvaluateConfig":
        if self.frontier and self.out is None:
            raise ValueError("the frontier is written to files; give --out a folder")
        if self.against is not None and not self.frontier:
            raise ValueError("against: curves over temperatures are compared; give --frontier, or leave it out")
        if self.against is not None and self.against not in self.model:
            raise ValueError(f"against: {self.against} is none of the models; name it with --model, too")
        return self

    @model_validator(mode="after")
    def _distances_need_real_text(self) -> "EvaluateConfig":
        if self.distances and not self.reference:
            raise ValueError("distances are from real held-out text; leave out --no-reference, or --distances")
        if self.distances and self.prompts is not None:
            raise ValueError("distances are from real text, and how people went on from --prompts is not known; give "
                             "--prompt-tokens, or leave out --distances")
        return self

    @model_validator(mode="after")
    def _prompts_are_of_one_kind(self) -> "EvaluateConfig":
        if self.prompts is not None and self.prompt_tokens is not None:
            raise ValueError("prompts and prompt_tokens: give only one of them")
        refuse_idle(self.prompts, prompt_field=self.prompt_field != PROMPT_FIELD)
        if self.prompted and self.naive:
            raise ValueError("naive: these samplers go on from no prompt; leave it out, or prompts and prompt_tokens")
        if self.prompted and not self.sampling:
            raise ValueError("prompts: are what sampled texts go on from, and --no-sampling leaves those out; leave one out")
        return self

    @model_validator(mode="after")
    def _something_to_measure(self) -> "EvaluateConfig":
        if not self.sampling and not self.bounds:
            raise ValueError("without sampling nothing is left to measure; give --likelihood, or leave out --no-sampling")
        if not self.sampling and (self.frontier or self.naive or self.distances):
            raise ValueError("--frontier, --naive and --distances measure texts, which --no-sampling leaves out; leave one out")
        return self

    @model_validator(mode="after")
    def _trajectories_are_looked_at(self) -> "EvaluateConfig":
        if self.trajectories_of is not None and not (self.memorisation and self.sampling):
            raise ValueError("trajectories_of: is where sampled texts are looked for, which --no-memorisation and "
                             "--no-sampling leave out; leave one out")
        return self

    @property
    def bounds(self) -> bool:
        """Whether likelihoods are bounded."""
        return self.likelihood or self.text is not None

    @property
    def prompted(self) -> bool:
        """Whether texts go on from prompts."""
        return self.prompts is not None or self.prompt_tokens is not None

    @property
    def real(self) -> bool:
        """Whether real text is sampled and judged: how people went on from the prompts of a file is not known."""
        return self.sampling and self.reference and self.prompts is None

    @property
    def reads_corpus(self) -> bool:
        """Whether the corpus is read at all."""
        return self.real or self.naive or self.prompt_tokens is not None or (self.likelihood and self.text is None)

    @property
    def swept(self) -> tuple[float, ...]:
        """The temperatures to sample at, rising."""
        return tuple(sorted({self.temperature, *(self.temperatures if self.frontier else ())}))


class Perplexity(Frozen):
    """What one judge says of one row. Per token of the judge's own tokenizer: comparable within a judge only."""

    perplexity: float = Field(description="exp(nats of all texts / tokens of all texts)")
    low: float = Field(description="95 % bootstrap interval over texts")
    high: float
    tokens: int = Field(description="tokens scored, of the judge's own")
    in_windows: int = Field(0, description="texts of more tokens than the judge has positions: scored in strided windows")


class TextScore(Perplexity):
    """What one judge says of some texts, and how diverse their tokens are, the judge's own."""

    texts: int
    entropy_bits: float = Field(description="mean per-text unigram entropy")
    distinct_2: float | None = Field(description="null where no text has two tokens")
    distinct_4: float | None = Field(description="null where no text has four tokens")


class Measures(Frozen):
    """Figures of one set of texts."""

    samples: int
    length: int = Field(description="tokens per text at most, of the model's own")
    mean_length: float | None = Field(None, description=(
        "tokens per text that were written, ends included, which are all that is measured; null: texts don't stop at an end"))
    ended: float | None = Field(None, description="share of the texts that ended; null: as above")
    nfe: float | None = Field(description="mean forward passes per text; null for real text, as for the next two")
    seconds: float | None = Field(description="wall seconds of sampling")
    tokens_per_second: float | None
    entropy_bits: float = Field(description="mean per-text unigram entropy of the model's tokens")
    entropy_standard_error: float
    distinct_2: float
    distinct_4: float
    self_bleu: float
    judges: dict[str, Perplexity] = Field(description="by evaluator, as named in the config")
    given: float | None = Field(None, description=(
        "tokens of a text that were its prompt, on average; figures are then of what stands after it; null: of whole texts"))


class Row(Measures, Memorised):
    """Figures of one model at one step count and temperature."""

    model: str = Field(description="as named in the config; of real text, the corpus")
    fingerprint: str = Field(description="of the model; of real text, of what identifies the held-out windows")
    vocabulary: str = Field(description="fingerprint of the tokenizer")
    texts: Texts = Field("packed", description="how the texts lie that the model was trained on, and so real ones")
    steps: int | None = Field(description="step count n; null for real text, as is the temperature")
    temperature: float | None
    distances: dict[str, Distances] = Field(default_factory=dict, description="by evaluator, where they were asked for")
    prompts: str | None = Field(None, description="fingerprint of the prompts; null without any")

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_newer(handler(self), info, distances={}, given=None, prompts=None, in_trajectories=None,
                             in_trajectories_standard_error=None)


class JudgeFacts(Frozen):
    """Which judge it was, and how it reads."""

    fingerprint: str
    vocabulary: str | None = Field(description="fingerprint of its tokenizer if that is one of this project's")
    positions: int | None = Field(None, description=(
        "tokens that it reads at once; longer texts are scored in windows of so many that begin half as many apart; null: any"))
    reads_tokens: bool = Field(False, description="whether the tokens of all models are its own: else it reads decoded text")


class Results(Frozen):
    """OUT/results.json."""

    command: str
    settings: EvaluateConfig
    versions: dict[str, str]
    device: str
    threads: int
    method: Literal[1, 2] = Field(1, description=(
        "how texts were sampled and scored. 1 (version 0.1.0): with the noise that `generate` uses, and whole; 2: with noise "
        "of their own, and texts that are longer than a judge in windows"))
    judges: dict[str, JudgeFacts]
    remarks: list[str] = Field(default_factory=list, description="what to know before reading a figure")
    rows: list[Row]
    likelihood: list[Bound] = Field(default_factory=list, description="bounds of the models' likelihood of real text")
    compared: list[Compared] = Field(default_factory=list, description=(
        "models at equal diversity, where temperatures were swept"))
    reference: list[Row] = Field(description="real held-out text, once per vocabulary and length of the models; may be empty")
    naive: list[Row] = Field(default_factory=list, description=(
        "texts of naive samplers, as often as real text: 'model' says which (unigram, shuffled, repeated, copied), and what "
        "is null in real text is null here"))

    @property
    def in_trajectories(self) -> bool:
        """Whether any row's texts were looked for in trajectories."""
        return any(row.in_trajectories is not None for row in [*self.rows, *self.reference, *self.naive])
