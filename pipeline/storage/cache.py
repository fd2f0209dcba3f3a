"""This user's copies of what takes long to fetch or to make.

They lie in $XDG_CACHE_HOME/tsdfm-pipeline, or ~/.cache/tsdfm-pipeline, and may be deleted at any time.
"""

import atexit
import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from os.path import expanduser, isabs
from pathlib import Path

from tsdfm.pipeline.storage.atomic import write_atomic
from tsdfm.schemas.base import InputError
from tsdfm.schemas.regular import read_regular

CORPORA = "TSDFM_CORPORA"  # the environment variable that says where corpora are kept
_DIGEST = hashlib.sha256().digest_size


def through_cache(sha256: str, fetch: Callable[[], bytes]) -> bytes:
    """The bytes that hash to `sha256`: this user's copy, or else those that `fetch` gives and checks, of which one is kept.

    A damaged copy is replaced, and where none can be written the bytes are fetched each time.
    """
    data = _read(sha256)
    if data is None or hashlib.sha256(data).hexdigest() != sha256:
        data = fetch()
        _write(sha256, data)
    return data


def kept(key: str, make: Callable[[], bytes]) -> bytes:
    """The bytes that `make` gives, or gave when they were asked for by this key before; `key` names all that they depend on.

    As of `through_cache`: nothing that can be wrong with the cache does more than that they are made again. Processes that ask
    at the same time each make them, and the last one's are kept.
    """
    stored = _read(key)
    if stored is not None and hashlib.sha256(stored[_DIGEST:]).digest() == stored[:_DIGEST]:
        return stored[_DIGEST:]
    data = make()
    _write(key, hashlib.sha256(data).digest() + data)
    return data


def corpora_folder() -> Path:
    """Where corpora are kept: $TSDFM_CORPORA, or `corpora` in the cache. If that can't be written, a folder that goes with this
    process. Raises InputError if $TSDFM_CORPORA can't.
    """
    given = os.environ.get(CORPORA)
    if given:
        named = Path(expanduser(given))  # which no shell has seen in a Dockerfile
        try:
            named.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{CORPORA}={given}: cannot write there ({error.strerror}); name a folder that you can write"
                             ) from None
        return named
    with contextlib.suppress(OSError, RuntimeError):  # no home, or a read-only one
        folder = _folder() / "corpora"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return _of_this_process()


@cache
def _of_this_process() -> Path:
    folder = tempfile.mkdtemp(prefix="tsdfm-corpora-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _folder() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if isabs(given) else Path.home() / ".cache") / "tsdfm-pipeline"  # by its standard a relative is none


def _read(name: str) -> bytes | None:
    with contextlib.suppress(OSError, RuntimeError):  # no such copy, or no home
        return read_regular(_folder() / name)
    return None


def _write(name: str, data: bytes) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        _folder().mkdir(parents=True, exist_ok=True)
        write_atomic(_folder() / name, data)
