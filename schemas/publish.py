"""`tsdfm-pipeline publish`: its config, and the receipt it leaves in OUT/published.json."""

from typing import Annotated, Literal

from pydantic import Field

from tsdfm.schemas.base import Frozen
from tsdfm.schemas.paths import PathName

RECEIPT_FILE = "published.json"
RepositoryName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$", max_length=96)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
RepositoryKind = Literal["dataset", "model"]


class PublishConfig(Frozen):
    """What to publish, and where. Every field is also a flag; the token is none: it is the Hub login's."""

    out: PathName = Field(description="Folder or URI of a finished dataset, or folder of a student")
    repo: RepositoryName = Field(description="Repository USER/NAME, made if it does not exist")
    private: bool = Field(False, description="Nobody else may see it; refused for a repository that is public already")
    license: str = Field("unknown", pattern=r"^[a-z0-9.-]+$", description=(
        "Licence for the card, by its id in the Hub's list: apache-2.0, cc-by-4.0, ..."))
    arm_splits: bool = Field(True, description=(
        "Of a dataset of both arms: add a copy of each arm's rows, so that an arm is a split; about doubles the bytes"))
    evaluation: PathName | None = Field(None, description=(
        "Of a student: the folder that `evaluate --out` wrote, for the card's table; null: a card without figures"))
    address: str = Field("local", description=(
        "Where a dataset's files are checked: 'local' for threads of this process, 'auto' or HOST:PORT for tasks of a Ray "
        "cluster"))


class Receipt(Frozen):
    """OUT/published.json: where the folder's content stands on the Hub. Names no address and no login."""

    repo: RepositoryName
    kind: RepositoryKind
    revision: Commit = Field(description="the commit that holds all of it")
    uri: str = Field(description="what `distill --data` takes, or the model's repository at that commit")
    files: int = Field(ge=0, description="files of the repository that are this dataset or student")
    bytes: int = Field(ge=0, description="their bytes")
    changed_files: int = Field(ge=0, description="files that this run found different in the repository, and sent")
    changed_bytes: int = Field(ge=0, description="their bytes")
    deleted_files: int = Field(ge=0, description="files that the repository held of an older version")
    published: str = Field(description="when, UTC, ISO 8601")

    @property
    def sent_anything(self) -> bool:
        """Whether this run had anything to send."""
        return bool(self.changed_files or self.deleted_files)
