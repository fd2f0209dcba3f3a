"""Which text to read: the part of the config that all commands that read text share."""

from pydantic import Field

from tsdfm.schemas.base import Frozen
from tsdfm.schemas.paths import PathName
from tsdfm.schemas.terms import CorpusPart


class CorpusConfig(Frozen):
    """What text to read."""

    path: PathName = Field("python", description=(
        "Where the text is: 'python' (the English that comes with Python and the installed packages), a .txt/.md, .jsonl, "
        ".jsonl.zst or .parquet file, a folder of them, or hub:NAME[:SPLIT] for a Hub dataset"))
    text_field: str = Field("text", min_length=1, description="Name of the field that holds the text, in records and columns")
    part: CorpusPart = Field("all", description=(
        "Which half of the training documents (split by what they hold): a compass is fitted on one, its judge on the other"))
