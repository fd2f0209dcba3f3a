"""The config of `tsdfm-pipeline sample`."""

from pydantic import Field, model_validator

from tsdfm.schemas.base import Frozen
from tsdfm.schemas.extent import Overlap, StopsAt
from tsdfm.schemas.generate import RolloutConfig
from tsdfm.schemas.paths import PathName
from tsdfm.schemas.prompts import BLANK, PROMPT_FIELD, PromptField, PromptFile, PromptGaps, refuse_idle


class SampleConfig(Frozen):
    """`tsdfm-pipeline sample`: texts of a model, blind, as inference makes them."""

    model: PathName = Field("embedded", description=(
        "The model that writes: 'embedded' (the small teacher that ships with the package), 'embedded:uniform', or the folder "
        "of a teacher or student, or hub:USER/NAME[@REVISION]"))
    number: int = Field(4, ge=1, lt=2**31, description="How many texts to write, to each prompt if there are any")
    prompt: str | None = Field(None, min_length=1, description="What each text begins with; the model writes the rest")
    prompts: PromptFile = None
    prompt_field: PromptField = PROMPT_FIELD
    prompt_gaps: PromptGaps = False
    infill: str | None = Field(None, min_length=1, description=(
        "A text with gaps, each written ___ (three low lines or more); the model fills them, and they share evenly the tokens "
        "that a text has beside the given ones (--length)"))
    until: StopsAt = None
    overlap: Overlap = None
    rollout: RolloutConfig = RolloutConfig()

    @model_validator(mode="after")
    def _one_kind_of_prompt(self) -> "SampleConfig":
        given = [name for name in ("prompt", "prompts", "infill") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: give only one of them")
        if self.infill is not None and not BLANK.search(self.infill):
            raise ValueError("infill: has no gap; write ___ where the model is to write, or give prompt")
        if self.infill is not None and not BLANK.sub("", self.infill).strip():
            raise ValueError("infill: has gaps and no words; write some words beside ___, or leave it out")
        refuse_idle(self.prompts, prompt_gaps=self.prompt_gaps, prompt_field=self.prompt_field != PROMPT_FIELD)
        return self
