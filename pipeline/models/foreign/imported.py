"""What an import gives."""

from dataclasses import dataclass

from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.training_record import ImportRecord


@dataclass(frozen=True)
class Imported:
    """A denoiser made of another project's weights, where they are from, and what is assumed because nothing says it."""

    network: Denoiser
    vocabulary: Vocabulary
    record: ImportRecord
    assumed: list[str]
