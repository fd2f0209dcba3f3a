"""A model of the Hugging Face Hub by its name, pinned to one commit, kept in the client's cache, and checked.

    hub:USER/NAME[@REVISION]     REVISION: a branch, a tag or a commit; none: the default branch

A branch moves, so it is resolved once, and what is recorded names the commit. Without a network, a branch is what it was when
it was last read here, and a commit needs no network at all once its files are in the cache. Every file of the cache is compared
with the checksum that the Hub gave for it (sha256 of large files, git's of small ones); a damaged one is fetched anew.
"""

import contextlib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tsdfm.pipeline.storage.atomic import sha256_file
from tsdfm.pipeline.storage.hub.client import client, endpoint, explained
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.regular import read_regular

HUB = "hub:"
# Of a model that is opened as it is: weights, configs and tokenizers. Pickled weights are never among them.
MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
_NAME = re.compile(r"hub:(?P<repo>[^/@:\s]+(?:/[^/@:\s]+)?)(?:@(?P<revision>[^@:\s]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ANY_FILE = "config.json"  # asking for it notes the revision, whether or not it is there
_NO_FILE = "-"  # a pattern of none, where the folder is asked for, whole or not
_SECONDS = 30.0  # to wait for the Hub's answer about a revision
_THEN = "try again later, or download the model and give its folder"


@dataclass(frozen=True)
class HubModel:
    """A model repository at one commit."""

    repo: str
    commit: str
    revision: str | None = None  # as named

    @property
    def name(self) -> str:
        """The name that gives the same files for ever."""
        return f"{HUB}{self.repo}@{self.commit}"

    def files(self) -> list[str]:
        """The paths of its files, sorted; without a network, of those in the cache. Raises InputError or WorkError."""
        try:
            with explained(self.name, _THEN):
                tree = client().list_repo_tree(self.repo, revision=self.commit, recursive=True)
                return sorted(entry.path for entry in tree if hasattr(entry, "size"))
        except WorkError:
            folder = _cached(self.repo, self.commit)
            if folder is None:
                raise
            return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def fetch(self, patterns: Sequence[str] = MODEL_FILES) -> Path:
        """A folder with its files of these names (with * and ?), each checked. Raises InputError or WorkError."""
        from huggingface_hub import snapshot_download

        with explained(self.name, _THEN):
            folder = Path(snapshot_download(
                self.repo, revision=self.commit, allow_patterns=list(patterns), endpoint=endpoint()))
        for path in sorted(folder.rglob("*")):
            if path.is_file() and any(path.relative_to(folder).match(pattern) for pattern in patterns):
                self._check(folder, path)
        self._remember()
        return folder

    def _remember(self) -> None:
        """Have the client's cache note which commit the revision is, for when there is no network."""
        from huggingface_hub import hf_hub_download

        noted = _cached(self.repo, self.revision)
        if noted is None or noted.name != self.commit:
            with contextlib.suppress(InputError, WorkError, OSError), explained(self.name):  # it is no more than a help
                hf_hub_download(self.repo, _ANY_FILE, revision=self.revision, endpoint=endpoint())

    def _check(self, folder: Path, path: Path) -> None:
        """Fetch a file of the cache anew if it is damaged. Raises WorkError if that can't be done."""
        from huggingface_hub import hf_hub_download

        if _sound(path):
            return
        with explained(f"{self.name}: {path.name} is damaged in the cache", _THEN):
            hf_hub_download(self.repo, path.relative_to(folder).as_posix(), revision=self.commit, endpoint=endpoint(),
                            force_download=True)
        if not _sound(path):
            raise WorkError(f"{self.name}: {path.name} arrived with another checksum than the Hub's; {_THEN}")


def hub_model(name: str) -> HubModel:
    """The model of a name, at the commit that its revision is now. Raises InputError or WorkError."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise InputError(f"{name}: not a model of the Hub; write hub:USER/NAME or hub:USER/NAME@REVISION")
    repo, revision = found["repo"], found["revision"]
    if revision is not None and _COMMIT.fullmatch(revision):
        return HubModel(repo, revision, revision)
    try:
        with explained(name, _THEN):
            commit = client().model_info(repo, revision=revision, timeout=_SECONDS).sha
    except WorkError:
        folder = _cached(repo, revision)
        if folder is None:
            raise
        commit = folder.name
    if commit is None or not _COMMIT.fullmatch(commit):
        raise WorkError(f"{name}: the Hub named no commit for it; give one as @COMMIT")
    return HubModel(repo, commit, revision)


def pinned(name: str) -> str:
    """A model's name with the commit in it, if it is one of the Hub; any other name as it is."""
    return hub_model(name).name if name.startswith(HUB) else name


def located(name: str) -> Path:
    """The path of a model: what a name of the Hub is fetched to, or the name itself. Raises InputError or WorkError."""
    return hub_model(name).fetch() if name.startswith(HUB) else Path(name)


def _cached(repo: str, revision: str | None) -> Path | None:
    """The folder of a revision in the client's cache; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[_NO_FILE]))
    except (LocalEntryNotFoundError, ValueError):
        return None


def _sound(path: Path) -> bool:
    """Whether a file of the cache has the checksum after which the client names its copy; True where it names none."""
    copy = path.resolve()
    if not path.is_symlink():
        return True
    if _SHA256.fullmatch(copy.name):
        return sha256_file(copy) == copy.name
    if _COMMIT.fullmatch(copy.name):  # a small file
        data = read_regular(copy)
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == copy.name
    return True
