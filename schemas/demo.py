"""The config of `tsdfm-pipeline demo`."""

from pydantic import Field

from tsdfm.schemas.base import Frozen
from tsdfm.schemas.paths import PathName


class DemoConfig(Frozen):
    """`tsdfm-pipeline demo`: trajectories, two students, their evaluation, and one page."""

    out: PathName = Field("out/demo", description="Local folder of all that the demo makes")
    trajectories: int = Field(768, ge=2, lt=2**31, description=(
        "Pairs of trajectories: each written once with the compass choosing (shaped) and once without (blind)"))
    updates: int = Field(300, ge=1, lt=2**31, description=(
        "Optimiser updates of each of the two students, at most: one whose loss on held-out trajectories falls no more ends "
        "early"))
    samples: int = Field(128, ge=2, lt=2**31, description="Texts that each row of the evaluation measures")
