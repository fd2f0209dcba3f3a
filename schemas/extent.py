"""How far texts go that a model writes, as several commands take it: where they stop, and how blocks overlap."""

from typing import Annotated

from pydantic import Field

from tsdfm.schemas.terms import Until

StopsAt = Annotated[Until | None, Field(description=(
    "Where a text stops: 'end' at its end token, behind which nothing is shown or measured; 'length' at its last position; "
    "null: at its end, if the model was trained on padded texts, else at its last position"))]
Overlap = Annotated[int | None, Field(ge=1, le=65536, description=(
    "Of texts that are longer than the model's: how many tokens of a block the next one goes on from; null: half of the "
    "model's length"))]
