"""What `--model_args` of `tsdfm-pipeline lm-eval` may hold."""

from pydantic import Field

from tsdfm.schemas.base import Frozen
from tsdfm.schemas.paths import PathName


class HarnessConfig(Frozen):
    """A model, and how the lm-evaluation-harness asks it."""

    model: PathName = Field("embedded", description=(
        "The model: 'embedded', 'embedded:uniform', the folder of a teacher or student, or hub:USER/NAME[@REVISION]"))
    samples: int = Field(128, ge=1, le=1_000_000, description=(
        "States that are asked for a likelihood, at the most; a continuation of m tokens has 2^m - 1, and where that is no "
        "more, all are asked and the bound is exact"))
    steps: int = Field(64, ge=1, le=65536, description="Steps in which a continuation is written")
    temperature: float = Field(1.0, gt=0, le=10, description=(
        "Divides the model's logits while it writes, where a task doesn't name a temperature above 0"))
    batch_size: int = Field(32, ge=1, le=65536, description="States, or texts, that are computed together")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the noise")
