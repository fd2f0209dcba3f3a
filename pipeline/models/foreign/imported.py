"""What an import gives."""

from dataclasses import dataclass

from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.import_teacher import ImportConfig
from tsdfm.schemas.training_record import ImportRecord


@dataclass(frozen=True)
class Imported:
    """A denoiser made of another project's weights, where they are from, and what is assumed because nothing says it."""

    network: Denoiser
    vocabulary: Vocabulary
    record: ImportRecord
    assumed: list[str]


def end_of(config: ImportConfig, vocabulary: Vocabulary, assumed: list[str]) -> int | None:
    """The token at which a model's texts end, if they are padded with it; what the config leaves open is `assumed`."""
    if config.texts is None:
        assumed.append("texts are packed: what follows an end is another document (else --texts padded)")
    return vocabulary.eos_id if config.texts == "padded" else None
