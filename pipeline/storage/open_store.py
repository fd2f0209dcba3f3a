"""The one opener of datasets by name: a folder, a filesystem URI, or a dataset repository of the Hugging Face Hub."""

import re
from pathlib import Path

from tsdfm.pipeline.storage.hub.store import PREFIX, HubStore
from tsdfm.pipeline.storage.store import LocalStore, Store, UriStore
from tsdfm.schemas.base import InputError

_FILE = re.compile(r"(?s)file:(//(?P<host>[^/]*))?(?P<path>/.*|$)")  # RFC 8089: file:/path, file:///path, file://localhost/path


def is_here(name: str) -> bool:
    """Whether a name is that of a folder of this machine, or of a disk that it shares."""
    return _FILE.match(name) is not None or "://" not in name


def open_store(name: str) -> Store:
    """The store of a name; a Hub dataset is pinned to one commit, which its `uri` then names.

    Raises InputError for a URI that nobody knows, or a repository or revision that can't be had, WorkError where the Hub can't
    be reached.
    """
    if name.startswith(PREFIX):
        return HubStore(name)
    if found := _FILE.fullmatch(name):
        if found["host"] not in (None, "", "localhost") or not found["path"]:
            raise InputError(f"{name}: names no folder of this machine; write file:///path, or the path itself")
        return LocalStore(Path(found["path"]), name)
    return UriStore(name) if "://" in name else LocalStore(Path(name))
