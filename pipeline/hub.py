"""Datasets by name: a folder, a filesystem URI, or a dataset repository of the Hugging Face Hub, pinned to one commit.

    hf://datasets/USER/NAME[@REVISION]     REVISION: a branch, a tag or a commit; none: the default branch

A branch moves, so it is resolved once, when the dataset is opened, and the store's `uri` names the commit. A URI that already
names a commit (40 hex digits) asks the Hub for nothing that is in the client's cache, and so opens offline, too.
"""

import os
import re
from pathlib import Path
from typing import NoReturn

from tsdfm.pipeline.storage import Store
from tsdfm.schemas.base import InputError, WorkError

PREFIX = "hf://"
_NAME = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^@]+))?/?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
PIN_SECONDS = 30.0  # to wait for the Hub's answer about a revision


def open_dataset(path: str) -> Store:
    """The store of a dataset. Raises InputError for a URI nobody knows, or a repository or revision that can't be had."""
    return HubStore(path) if path.startswith(PREFIX) else Store(path)


class HubStore(Store):
    """A dataset repository at one commit, read-only. Files are kept in the Hub client's own cache."""

    def __init__(self, uri: str) -> None:
        found = _NAME.fullmatch(uri)
        if not found:
            raise InputError(f"{uri}: not a Hub dataset; write hf://datasets/USER/NAME or hf://datasets/USER/NAME@REVISION")
        self.repo, revision = found["repo"], found["revision"]
        self.local = None
        self.uri = uri
        self.commit = revision if revision and _COMMIT.fullmatch(revision) else self._pin(revision)
        self.uri = f"hf://datasets/{self.repo}@{self.commit}"

    @property
    def endpoint(self) -> str | None:
        """The Hub's address, if the environment names another: read at each call, so that it may be set late."""
        return os.environ.get("HF_ENDPOINT") or None

    def _pin(self, revision: str | None) -> str:
        from huggingface_hub import HfApi

        try:
            commit = HfApi(endpoint=self.endpoint).dataset_info(self.repo, revision=revision, timeout=PIN_SECONDS).sha
        except Exception as error:
            self._explain(error)
        if commit is None or not _COMMIT.fullmatch(commit):
            raise WorkError(f"{self.uri}: the Hub named no commit for it; give one as @COMMIT")
        return commit

    def read(self, path: str) -> bytes | None:
        """The file's bytes at the pinned commit, or None if there is no such file. Raises InputError or WorkError."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()  # one per shard would break into the command's own
        try:
            file = hf_hub_download(self.repo, path, repo_type="dataset", revision=self.commit, endpoint=self.endpoint)
            return Path(file).read_bytes()
        except LocalEntryNotFoundError as error:  # neither in the cache nor to be had: a kind of the next one
            self._explain(error)
        except EntryNotFoundError:
            return None
        except Exception as error:
            self._explain(error)

    def _explain(self, error: Exception) -> NoReturn:
        """One line for a failed request. The client raises a dozen kinds, and its HTTP library's own for a lost network."""
        from huggingface_hub import errors

        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            raise InputError(f"{self.uri}: access is gated; ask for it on the dataset's page, "
                             "then run 'hf auth login'") from None
        if isinstance(error, errors.RevisionNotFoundError):
            raise InputError(f"{self.uri}: no such revision; give a branch, a tag or a commit of {self.repo}") from None
        if isinstance(error, errors.RepositoryNotFoundError):
            raise InputError(f"{self.uri}: no such dataset, or it is private; check the name, "
                             "and run 'hf auth login' if it is yours") from None
        if isinstance(error, errors.HFValidationError):
            raise InputError(f"{self.uri}: {self.repo!r} can't be a repository's name; write USER/NAME") from None
        if status in (401, 403):
            raise InputError(f"{self.uri}: the Hub refused the login (HTTP {status}); run 'hf auth login' with a token "
                             "that may read it") from None
        if status is not None:
            raise WorkError(f"{self.uri}: the Hub answered HTTP {status}; try again later") from None
        where = self.endpoint or "the Hub"
        raise InputError(f"{self.uri}: {where} can't be reached ({type(error).__name__}); check the network, HF_ENDPOINT and "
                         "HF_HUB_OFFLINE, or download the dataset and give its folder") from None

    def write(self, path: str, data: bytes) -> NoReturn:
        """Refused: use `publish`."""
        self._refuse()

    def remove(self, path: str) -> NoReturn:
        """Refused."""
        self._refuse()

    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders directly in `folder`, sorted; [] if it does not exist."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import EntryNotFoundError

        try:
            tree = HfApi(endpoint=self.endpoint).list_repo_tree(
                self.repo, folder or None, revision=self.commit, repo_type="dataset")
            return sorted(entry.path.rpartition("/")[2] for entry in tree)
        except EntryNotFoundError:
            return []
        except Exception as error:
            self._explain(error)

    def _refuse(self) -> NoReturn:
        raise InputError(f"{self.uri}: a Hub dataset can only be read here; give a local folder or an object store's URI")
