"""The one opener of datasets by name: a folder, a filesystem URI, or a dataset repository of the Hugging Face Hub."""

from pathlib import Path

from tsdfm.pipeline.storage.hub.store import PREFIX, HubStore
from tsdfm.pipeline.storage.store import LocalStore, Store, UriStore

FILE = "file://"


def open_store(name: str) -> Store:
    """The store of a name; a Hub dataset is pinned to one commit, which its `uri` then names.

    Raises InputError for a URI that nobody knows, or a repository or revision that can't be had, WorkError where the Hub can't
    be reached.
    """
    if name.startswith(PREFIX):
        return HubStore(name)
    if name.startswith(FILE):
        return LocalStore(Path(name.removeprefix(FILE)), name)
    return UriStore(name) if "://" in name else LocalStore(Path(name))
