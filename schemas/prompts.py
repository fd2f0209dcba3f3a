"""Prompts, as several commands take them: the fields that they share, and how a gap is written."""

import re
from typing import Annotated

from pydantic import Field

from tsdfm.schemas.paths import PathName

BLANK = re.compile(r"\s*_{3,}")  # of a text with gaps; what a token begins with, a blank mostly, is the model's to write

PromptFile = Annotated[PathName | None, Field(description=(
    "File of prompts, each the beginning of a text: a .txt with one a line, or records or a table (.jsonl, .csv, .parquet, and "
    "what else a corpus may be)"))]
PROMPT_FIELD = "prompt"
PromptField = Annotated[str, Field(min_length=1, description="Name of the field of --prompts that holds them")]
PromptGaps = Annotated[bool, Field(description=(
    "Read ___ (three low lines or more) in prompts of --prompts as a gap that the model fills, as sample --infill does; a "
    "prompt without one is a beginning. Otherwise ___ is text"))]


def refuse_idle(prompts: str | None, **given: bool) -> None:
    """Raises ValueError if settings of --prompts (name -> whether it is one's own) are given without it."""
    idle = next((name for name, own in given.items() if own), None)
    if prompts is None and idle is not None:
        raise ValueError(f"{idle}: says how prompts are taken, and there are none; give prompts a file, or leave it out")
