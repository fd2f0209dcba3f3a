"""Which text to read: the part of the config that all commands that read text share."""

from typing import Any

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

from tsdfm.schemas.base import Frozen, without_newer
from tsdfm.schemas.paths import PathName
from tsdfm.schemas.terms import Cleaning, CorpusPart

BIBLE = "bible"  # the path that names the corpus that is the same everywhere
PYTHON = "python"  # the path that names what is read from the Python that is installed, and so differs between machines
DEFAULT = BIBLE  # what is read where nobody says what
NAMED = (BIBLE, PYTHON)  # paths that are names, whatever lies in the current folder
HUB = "hub:"  # what a path begins with that names a dataset of the Hub


class CorpusConfig(Frozen):
    """What text to read."""

    path: PathName = Field(DEFAULT, description=(
        "Where the text is: 'bible' (that in Basic English, the same on every machine), 'python' (the English of the "
        "documentation of Python and of the installed packages), a .txt, .md, .jsonl, "
        ".ndjson, .json, .csv, .tsv, .parquet or .arrow file, all but the last two also compressed (.gz, .zst, .bz2, .xz), a "
        "folder of them, or hub:NAME[@REVISION][:CONFIG][:SPLIT] for a dataset of the Hub"))
    text_field: str = Field("text", min_length=1, description="Name of the field that holds the text, in records and columns")
    clean: Cleaning = Field("none", description=(
        "What is changed of the text: 'none' keeps it as given, but for Unicode NFC, control characters and exact duplicates "
        "of whole documents; 'prose' also folds blanks, and drops lines that occurred before and documents under 60 "
        "characters, as is always done with the corpus 'python'"))
    part: CorpusPart = Field("all", description=(
        "Which half of the training documents (split by what they hold): a compass is fitted on one, its judge on the other"))

    @model_serializer(mode="wrap")
    def _as_before_cleaning(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_newer(handler(self), info, clean="none")
