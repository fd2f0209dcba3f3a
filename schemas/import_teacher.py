"""The config of `tsdfm-pipeline import-teacher`, and what a transformers-style config.json of MDLM says."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tsdfm.schemas.base import Frozen
from tsdfm.schemas.paths import PathName
from tsdfm.schemas.terms import Source


class ImportConfig(Frozen):
    """Which checkpoint, and what its tensors don't say. Null: read from the checkpoint, or the published models' value."""

    checkpoint: PathName = Field(description="A .safetensors or torch file, or a folder that holds one")
    layout: Literal["auto", "fs-dfm", "mdlm"] = Field("auto", description=(
        "Whose checkpoint it is; 'auto' tells it by the names of the tensors"))
    tokenizer: PathName | None = Field(None, description=(
        "Its tokenizer.json, or a folder with one; null: the one beside the checkpoint"))
    eos: str | None = Field(None, min_length=1, description="Token that ends a text; null: as the tokenizer says")
    source: Source | None = Field(None, description=(
        "What its texts start from: all [MASK] ('mask') or random tokens ('uniform'); null: told by the vocabulary's size"))
    weights: str | None = Field(None, min_length=1, description=(
        "Which weights of a file that holds several sets; null: the student's average, the student, the average, ..."))
    heads: int | None = Field(None, ge=1, le=256, description=(
        "Attention heads; null: from the rotary buffer or config.json beside the checkpoint"))
    length: int | None = Field(None, ge=1, description="Tokens of a text; null: from config.json, or 1024")
    kappa_exponent: float = Field(1.0, gt=0, description=(
        "Exponent n of the schedule kappa_t = t^n that it was trained with"))
    time_conditioning: bool | None = Field(None, description=(
        "Of MDLM: whether the network was told its noise level sigma; null: from config.json, or no, as in the published "
        "models"))

    @model_validator(mode="after")
    def _layouts_fit(self) -> "ImportConfig":
        if self.layout == "mdlm" and self.source == "uniform":
            raise ValueError("layout 'mdlm' has the mask source; leave out source, or give another layout")
        if self.layout == "fs-dfm" and self.time_conditioning is not None:
            raise ValueError("layout 'fs-dfm' is always told the time; leave out time_conditioning")
        return self


class MdlmFile(BaseModel):
    """The fields of MDLM's config.json that the tensors don't tell; others are not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model_type: str | None = None
    n_heads: int | None = Field(None, ge=1)
    model_length: int | None = Field(None, ge=1)
    time_conditioning: bool | None = None
