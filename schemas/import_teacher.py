"""The config of `import-teacher`, and what a config.json beside another project's weights says."""

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from tsdfm.schemas.base import Frozen, without_newer
from tsdfm.schemas.model import KappaExponent
from tsdfm.schemas.paths import PathName
from tsdfm.schemas.terms import Layout, Source, Texts


class ImportConfig(Frozen):
    """Which checkpoint, and what its tensors don't say. Null: read from the checkpoint, or the published models' value."""

    checkpoint: PathName = Field(description=(
        "A .safetensors or torch file, a folder that holds one, or hub:USER/NAME[@REVISION]"))
    file: str | None = Field(None, min_length=1, description=(
        "Which file of weights of a folder or repository that holds several; null: the one of the usual name, or the only one"))
    layout: Literal["auto", "fs-dfm", "mdlm", "duo", "sdtt", "masked-lm"] = Field("auto", description=(
        "Whose checkpoint it is; 'auto' tells it by the names of the tensors and by config.json. Files of MDLM, SDTT (mask "
        "source) and Duo (uniform source) look alike, so a bare one needs this. 'masked-lm' is any masked language model of "
        "transformers"))
    tokenizer: PathName | None = Field(None, description=(
        "Its tokenizer.json, or a folder with one; null: the one beside the checkpoint"))
    eos: str | None = Field(None, min_length=1, description="Token that ends a text; null: as the tokenizer says")
    mask: str | None = Field(None, min_length=1, description=(
        "Of a masked language model: the token that stands for a hidden one; null: [MASK] or <mask>"))
    source: Source | None = Field(None, description=(
        "What its texts start from: all [MASK] ('mask') or random tokens ('uniform'); null: told by the vocabulary's size"))
    weights: str | None = Field(None, min_length=1, description=(
        "Which weights of a file that holds several sets; null: the student's average, the student, the average, ..."))
    heads: int | None = Field(None, ge=1, le=256, description=(
        "Attention heads; null: from the rotary buffer or config.json beside the checkpoint"))
    length: int | None = Field(None, ge=1, le=65536, description="Tokens of a text; null: from config.json, or 1024")
    kappa_exponent: KappaExponent = Field(1.0, description=(
        "Exponent n of the schedule kappa_t = t^n that it was trained with"))
    time_conditioning: bool | None = Field(None, description=(
        "Of MDLM and SDTT: whether the network was told its noise level sigma; null: from config.json, or no, as in the "
        "published models"))

    texts: Texts | None = Field(None, description=(
        "How its texts lay when it was trained: 'packed', one document after another, or 'padded', each a text of its own with "
        "end tokens behind it, so that it writes texts that end (--eos names that token); null: packed"))

    @model_validator(mode="after")
    def _layouts_fit(self) -> "ImportConfig":
        wanted: dict[str, Source] = {"mdlm": "mask", "sdtt": "mask", "masked-lm": "mask", "duo": "uniform"}
        source = wanted.get(self.layout)
        if source is not None and self.source not in (None, source):
            raise ValueError(f"layout '{self.layout}' has the {source} source; leave out source, or give another layout")
        if self.layout in ("fs-dfm", "duo") and self.time_conditioning is not None:
            raise ValueError(f"layout '{self.layout}' is always told the time; leave out time_conditioning")
        if self.layout == "masked-lm" and self.time_conditioning is not None:
            raise ValueError("layout 'masked-lm' is never told the time; leave out time_conditioning")
        return self

    @model_serializer(mode="wrap")
    def _as_before_the_hub(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_newer(handler(self), info, file=None, mask=None, texts=None)


class _Loose(BaseModel):
    """What is read of a file of another project: the fields that are named, nothing else."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class _Sizes(_Loose):
    n_heads: int | None = Field(None, ge=1)
    length: int | None = Field(None, ge=1)


class _Algorithm(_Loose):
    name: str | None = None
    time_conditioning: bool | None = None


class CheckpointFile(_Loose):
    """The fields of a config.json of MDLM, Duo or SDTT that the tensors don't tell; others are not looked at.

    Published models of MDLM and Duo have them at the top; SDTT, and what Duo's own code uploads, in groups.
    """

    model_type: str | None = None
    n_heads: int | None = Field(None, ge=1)
    model_length: int | None = Field(None, ge=1)
    time_conditioning: bool | None = None
    model: Any = None
    algo: Any = None
    parameterization: Any = None
    config: Any = None

    @property
    def told(self) -> "Told":
        """What it says, wherever it says it. Raises pydantic's ValidationError."""
        if self.model_type is None and isinstance(self.config, dict):  # as huggingface_hub's mixin keeps it
            return CheckpointFile.model_validate(self.config).told
        sizes = _Sizes.model_validate(self.model if isinstance(self.model, dict) else {})
        algorithm = _Algorithm.model_validate(self.algo if isinstance(self.algo, dict) else {})
        rounds = isinstance(self.parameterization, dict) and "num_distill_steps" in self.parameterization
        timed = self.time_conditioning if algorithm.time_conditioning is None else algorithm.time_conditioning
        return Told(family=self.model_type or algorithm.name or ("sdtt" if rounds else None),
                    heads=self.n_heads or sizes.n_heads, length=self.model_length or sizes.length, timed=timed)


class Told(Frozen):
    """What the file beside the weights says of them."""

    family: str | None = Field(None, description="in its own word")
    heads: int | None = None
    length: int | None = None
    timed: bool | None = Field(None, description="whether the network is told its noise level")

    @property
    def layout(self) -> Layout | None:
        """The layout of that family; None: there is no family, or it is none that is known."""
        return FAMILIES.get((self.family or "").lower())


FAMILIES: dict[str, Layout] = {"mdlm": "mdlm", "sdtt": "sdtt", "duo": "duo", "duo_base": "duo", "distillation": "duo"}
