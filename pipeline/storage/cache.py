"""Copies of remote files that this user has read before, found by what their bytes hash to."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from tsdfm.pipeline.storage.atomic import write_atomic
from tsdfm.schemas.regular import read_regular


def through_cache(sha256: str, fetch: Callable[[], bytes]) -> bytes:
    """The bytes that hash to `sha256`: this user's copy, or else those that `fetch` gives and checks, of which one is kept.

    Copies lie in $XDG_CACHE_HOME/tsdfm-pipeline, or ~/.cache/tsdfm-pipeline, and may be deleted at any time; a damaged one is
    replaced, and where none can be written the bytes are fetched each time.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tsdfm-pipeline"
    with contextlib.suppress(OSError):
        data = read_regular(folder / sha256)
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    data = fetch()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / sha256, data)
    return data
