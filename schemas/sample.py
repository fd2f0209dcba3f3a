"""The config of `tsdfm-pipeline sample`."""

import re

from pydantic import Field, model_validator

from tsdfm.schemas.base import Frozen
from tsdfm.schemas.generate import RolloutConfig
from tsdfm.schemas.paths import PathName
from tsdfm.schemas.terms import Until

BLANK = re.compile(r"\s*_{3,}")  # of a text with gaps; what a token begins with, a blank mostly, is the model's to write


class SampleConfig(Frozen):
    """`tsdfm-pipeline sample`: texts of a model, blind, as inference makes them."""

    model: PathName = Field("embedded", description=(
        "The model that writes: 'embedded' (the small teacher that ships with the package), 'embedded:uniform', or the folder "
        "of a teacher or student, or hub:USER/NAME[@REVISION]"))
    number: int = Field(4, ge=1, lt=2**31, description="How many texts to write, to each prompt if there are any")
    prompt: str | None = Field(None, min_length=1, description="What each text begins with; the model writes the rest")
    prompts: PathName | None = Field(None, description=(
        "File of prompts, each a beginning as of --prompt: a .txt with one a line, or records or a table (.jsonl, .csv, "
        ".parquet, and what else a corpus may be)"))
    prompt_field: str = Field("prompt", min_length=1, description="Name of the field of --prompts that holds them")
    infill: str | None = Field(None, min_length=1, description=(
        "A text with gaps, each written ___ (three low lines or more); the model fills them, and they share evenly the tokens "
        "that a text has beside the given ones (--length)"))
    until: Until | None = Field(None, description=(
        "Where a text stops: 'end' at its end token, behind which nothing is shown or measured; 'length' at its last position; "
        "null: at its end, if the model was trained on padded texts, else at its last position"))
    overlap: int | None = Field(None, ge=1, description=(
        "Of texts that are longer than the model's: how many tokens of a block the next one goes on from; null: half of the "
        "model's length"))
    rollout: RolloutConfig = RolloutConfig()

    @model_validator(mode="after")
    def _one_kind_of_prompt(self) -> "SampleConfig":
        given = [name for name in ("prompt", "prompts", "infill") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: give only one of them")
        if self.infill is not None and not BLANK.search(self.infill):
            raise ValueError("infill: has no gap; write ___ where the model is to write, or give prompt")
        return self
