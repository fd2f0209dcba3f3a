"""Which text to read: the part of the config that all commands that read text share."""

from typing import Any

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

from tsdfm.schemas.base import Frozen, without_newer
from tsdfm.schemas.paths import PathName
from tsdfm.schemas.terms import Cleaning, CorpusPart

BUILT_IN = "python"  # the path that names the built-in corpus
BIBLE = "bible"  # the path that names the one that is the same everywhere
NAMED = (BUILT_IN, BIBLE)  # paths that are names, whatever lies in the current folder
HUB = "hub:"  # what a path begins with that names a dataset of the Hub


class CorpusConfig(Frozen):
    """What text to read."""

    path: PathName = Field(BUILT_IN, description=(
        "Where the text is: 'python' (the English that comes with Python and the installed packages), 'bible' (that in Basic "
        "English, the same on every machine), a .txt, .md, .jsonl, "
        ".ndjson, .json, .csv, .tsv, .parquet or .arrow file, all but the last two also compressed (.gz, .zst, .bz2, .xz), a "
        "folder of them, or hub:NAME[@REVISION][:CONFIG][:SPLIT] for a dataset of the Hub"))
    text_field: str = Field("text", min_length=1, description="Name of the field that holds the text, in records and columns")
    clean: Cleaning = Field("none", description=(
        "What is changed of the text: 'none' keeps it as given, but for Unicode NFC, control characters and exact duplicates "
        "of whole documents; 'prose' also folds blanks, and drops lines that occurred before and documents under 60 "
        "characters, as is always done with the built-in corpus"))
    part: CorpusPart = Field("all", description=(
        "Which half of the training documents (split by what they hold): a compass is fitted on one, its judge on the other"))

    @model_serializer(mode="wrap")
    def _as_before_cleaning(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        return without_newer(handler(self), info, clean="none")
