"""What stands beside a corpus that was read, in this user's cache."""

from pydantic import Field

from tsdfm.schemas.base import Frozen, Sha256


class StoredCorpus(Frozen):
    """`corpus.json`: written last, when all documents are there."""

    splits: dict[str, int] = Field(description="'held_out', 'first', 'second' -> how many of the documents")
    sha256: Sha256 = Field(description="of all documents, a zero byte between any two")
    commit: str | None = Field(description="of a Hub dataset: the commit that was read")
    left_out: dict[str, int] = Field(description="what, in words -> how many of it")
    pieces: list[int] = Field(description="documents in each file, in their order")
