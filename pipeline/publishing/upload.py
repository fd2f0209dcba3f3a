"""A repository of the Hub being brought up to date: only what differs travels, and what arrived once is not sent again.

Files are compared with the repository by content (sha256 of a large file, git's blob id of a small one), so an unchanged one
costs nothing. The others are uploaded in groups: their contents are stored by hash, out of anybody's sight, and a rerun finds
them there. Commits name them: one for up to FILES_A_COMMIT files, so that readers of the branch see the old version or the new
one; larger publications take several, and the last, which holds what makes the rest valid (the manifest) and deletes what is
gone, ends them. Every commit names its parent, so that two publishers can't mix their files.

(The client's `upload_folder` compares as well, but commits in parts that it chooses, in an order of its own, and guards only
the first by its parent.)
"""

import hashlib
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tsdfm.pipeline.storage.hub.client import client, explained
from tsdfm.schemas.base import Frozen, InputError, parse_json
from tsdfm.schemas.publish import RepositoryKind
from tsdfm.schemas.regular import read_regular

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

FILES_A_COMMIT = 250  # a commit's time on the Hub grows with its files
GROUP_BYTES = 256 << 20  # held in memory while they travel, as are up to GROUP_FILES
GROUP_FILES = 20
GO_ON = "what arrived is kept; the same command goes on"
UNOWNED = {".gitattributes", "README.md", "LICENSE"}  # what a repository made by hand may hold


@dataclass(frozen=True)
class Remote:
    """A file of the repository: its size, and sha256 (`large`) or git blob id."""

    size: int
    digest: str
    large: bool

    def holds(self, data: bytes) -> bool:
        """Whether the file's content is `data`, told by size and hash."""
        if self.size != len(data):
            return False
        return self.digest == (hashlib.sha256(data).hexdigest() if self.large else git_blob_id(data))


def git_blob_id(data: bytes) -> str:
    """The object id that git gives a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class Upload:
    """One publication under way. `head`: the commit it stands on; the counts are of this run."""

    def __init__(self, repo: str, kind: RepositoryKind, message: str) -> None:
        self.repo, self.kind, self.message, self.api = repo, kind, message, client()
        self.head, self.remote = "", dict[str, Remote]()
        self.files = self.bytes = self.changed_files = self.changed_bytes = self.deleted_files = 0
        self._seen: set[str] = set()
        self._not_ours: set[str] = set()  # may not be overwritten
        self._group: list[CommitOperationAdd] = []  # not yet uploaded
        self._uploaded: list[CommitOperationAdd] = []  # not yet committed
        self._commits = 0

    def open(self, private: bool, marker: str, record: type[Frozen], paths: Set[str]) -> None:
        """Make the repository if there is none, and list it.

        A repository without a file `marker` that is a `record` is new, or was left by a run that was cut, or is none of ours:
        there, nothing but `paths` may be, and no file of them may differ (`add` refuses). Raises InputError if it holds others,
        or if it is public and should not be.
        """
        from huggingface_hub.hf_api import RepoFile

        with explained(self.repo, GO_ON):
            self.api.create_repo(self.repo, repo_type=self.kind, private=private or None, exist_ok=True)
            info = self.api.repo_info(self.repo, repo_type=self.kind)
            if private and not info.private:
                raise InputError(f"{self.repo}: exists and is public; make it private in its settings, or leave out --private")
            if info.sha is None:
                raise InputError(f"{self.repo}: the Hub names no commit of it; remove the repository, or give another --repo")
            self.head = info.sha
            for entry in self.api.list_repo_tree(self.repo, recursive=True, revision=self.head, repo_type=self.kind):
                if isinstance(entry, RepoFile):
                    lfs = entry.lfs
                    self.remote[entry.path] = Remote(entry.size, lfs.sha256 if lfs else entry.blob_id, lfs is not None)
        if not self._is_ours(marker, record):
            self._not_ours = self.remote.keys() - UNOWNED
            self._refuse_others((self._not_ours - paths) | (self._not_ours & {marker}))

    def _is_ours(self, marker: str, record: type[Frozen]) -> bool:
        if marker not in self.remote:
            return False
        with explained(self.repo, GO_ON):
            file = self.api.hf_hub_download(self.repo, marker, repo_type=self.kind, revision=self.head)
        try:
            parse_json(record, read_regular(Path(file)), marker)
        except InputError:
            return False
        return True

    def add(self, path: str, data: bytes) -> None:
        """Bring one file up to date. Uploads when a group is full, and commits when a commit is."""
        from huggingface_hub import CommitOperationAdd

        self._seen.add(path)
        self.files, self.bytes = self.files + 1, self.bytes + len(data)
        if path in self.remote and self.remote[path].holds(data):
            return
        self._refuse_others(self._not_ours & {path})
        self.changed_files, self.changed_bytes = self.changed_files + 1, self.changed_bytes + len(data)
        self._group.append(CommitOperationAdd(path, data))
        if len(self._group) >= GROUP_FILES or sum(each.upload_info.size for each in self._group) >= GROUP_BYTES:
            self._send_group()
        if len(self._uploaded) >= FILES_A_COMMIT:
            self._commit([])

    def finish(self, last: Mapping[str, bytes], owned: Callable[[str], bool]) -> str:
        """Send what is left and `last`, delete `owned` files that are no longer part, and return the revision of it all."""
        for path, data in last.items():
            self.add(path, data)
        self._send_group()
        gone = sorted(path for path in self.remote.keys() - self._seen if owned(path))
        self.deleted_files = len(gone)
        if self._uploaded or gone:
            self._commit(gone)
        return self.head

    def _refuse_others(self, paths: Set[str]) -> None:
        if paths:
            raise InputError(f"{self.repo}: holds other files than this {self.kind} ({', '.join(sorted(paths)[:3])}); "
                             "give another --repo, or empty that one")

    def _send_group(self) -> None:
        """Upload the contents of a group; of large files, only hashes are kept."""
        if self._group:
            with explained(self.repo, GO_ON):
                self.api.preupload_lfs_files(self.repo, additions=self._group, repo_type=self.kind, free_memory=True)
            self._uploaded += self._group
            self._group = []

    def _commit(self, gone: list[str]) -> None:
        from huggingface_hub import CommitOperationDelete

        self._commits += 1
        message = self.message if self._commits == 1 else f"{self.message} (part {self._commits})"
        deletions = [CommitOperationDelete(path) for path in gone]
        with explained(self.repo, GO_ON):
            self.head = self.api.create_commit(
                self.repo, [*self._uploaded, *deletions], commit_message=message, repo_type=self.kind,
                parent_commit=self.head).oid
        self._uploaded = []
