"""The config of `tsdfm-pipeline sample`."""

from pydantic import Field

from tsdfm.schemas.base import Frozen
from tsdfm.schemas.generate import RolloutConfig
from tsdfm.schemas.paths import PathName


class SampleConfig(Frozen):
    """`tsdfm-pipeline sample`: texts of a model, blind, as inference makes them."""

    model: PathName = Field("embedded", description=(
        "The model that writes: 'embedded' (the small teacher that ships with the package), 'embedded:uniform', or the folder "
        "of a teacher or student, or hub:USER/NAME[@REVISION]"))
    number: int = Field(4, ge=1, lt=2**31, description="How many texts to write")
    rollout: RolloutConfig = RolloutConfig()
