"""A dataset repository of the Hugging Face Hub as a store, read-only, pinned to one commit.

    hf://datasets/USER/NAME[@REVISION]     REVISION: a branch, a tag or a commit; none: the default branch

A branch moves, so it is resolved once, when the dataset is opened, and the store's `uri` names the commit. A URI that already
names a commit (40 hex digits) asks the Hub for nothing that is in the client's cache, and so opens offline, too.
"""

import re
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa

from tsdfm.pipeline.storage.hub.client import client, endpoint, explained
from tsdfm.pipeline.storage.store import Store
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.progress import Progress, unheard

PREFIX = "hf://"
_NAME = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^@]+))?/?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
PIN_SECONDS = 30.0  # to wait for the Hub's answer about a revision
_THEN = "try again later, or download the dataset and give its folder"


class HubStore(Store):
    """A dataset repository at one commit, read-only. Files are kept in the Hub client's own cache."""

    def __init__(self, uri: str) -> None:
        found = _NAME.fullmatch(uri)
        if not found:
            raise InputError(f"{uri}: not a Hub dataset; write hf://datasets/USER/NAME or hf://datasets/USER/NAME@REVISION")
        self.repo, revision = found["repo"], found["revision"]
        self.uri = uri
        self.commit = revision if revision and _COMMIT.fullmatch(revision) else self._pin(revision)
        self.uri = self.address = f"hf://datasets/{self.repo}@{self.commit}"

    def __reduce__(self) -> tuple[Any, ...]:
        return HubStore, (self.address,)

    def _pin(self, revision: str | None) -> str:
        with explained(self.uri, _THEN):
            commit = client().dataset_info(self.repo, revision=revision, timeout=PIN_SECONDS).sha
        if commit is None or not _COMMIT.fullmatch(commit):
            raise WorkError(f"{self.uri}: the Hub named no commit for it; give one as @COMMIT")
        return commit

    def read(self, path: str) -> bytes | None:
        """See `Store.read`; InputError, too: no such repository, or no right to read it."""
        file = self._file(path)
        return None if file is None else file.read_bytes()

    def open(self, path: str) -> pa.NativeFile | None:
        """See `Store.open`, and `read`."""
        file = self._file(path)
        return None if file is None else pa.OSFile(str(file))

    def stamp(self, path: str) -> str | None:
        """See `Store.stamp`: a commit doesn't change."""
        return self.commit

    def _file(self, path: str) -> Path | None:
        """The file in the client's cache, fetched if it is not there."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        with explained(self.uri, _THEN):
            try:
                file = hf_hub_download(self.repo, path, repo_type="dataset", revision=self.commit, endpoint=endpoint())
            except LocalEntryNotFoundError:  # neither in the cache nor to be had: a kind of the next one
                raise
            except EntryNotFoundError:
                return None
            return Path(file)

    def names(self, folder: str = "") -> list[str]:
        """See `Store.names`."""
        from huggingface_hub.errors import EntryNotFoundError

        with explained(self.uri, _THEN):
            try:
                tree = client().list_repo_tree(self.repo, folder or None, revision=self.commit, repo_type="dataset")
                return sorted(entry.path.rpartition("/")[2] for entry in tree)
            except EntryNotFoundError:
                return []

    def below(self, folder: str) -> set[str]:
        """See `Store.below`."""
        from huggingface_hub.errors import EntryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        with explained(self.uri, _THEN):
            try:
                tree = client().list_repo_tree(self.repo, folder, recursive=True, revision=self.commit, repo_type="dataset")
                return {entry.path for entry in tree if isinstance(entry, RepoFile)}
            except EntryNotFoundError:
                return set()

    def write(self, path: str, data: bytes) -> NoReturn:
        """Raises InputError, always: a dataset on the Hub is only read here; `publish` writes one."""
        self._refuse()

    def remove(self, path: str) -> NoReturn:
        """Raises InputError, always: a dataset on the Hub is only read here, so no file of it is removed."""
        self._refuse()

    def move(self, source: str, target: str) -> NoReturn:
        """Raises InputError, always: a dataset on the Hub is only read here, so no file of it is moved."""
        self._refuse()

    def inside(self, folder: str) -> NoReturn:
        """Raises InputError, always: a dataset on the Hub is read as a whole."""
        self._refuse()

    def owned(self, progress: Progress = unheard) -> NoReturn:
        """Raises InputError, always: a dataset on the Hub is only read here, so no run can hold it."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(f"{self.uri}: a Hub dataset can only be read here; give a local folder or an object store's URI")
