"""Names of models, corpora and datasets as other processes must be given them, which stand in another directory."""

from pathlib import Path

from tsdfm.schemas.base import recordable
from tsdfm.schemas.corpus import NAMED

NAMES = ("embedded", "none", "denoiser", *NAMED)  # of models and corpora that are no folders


def anchored(name: str) -> str:
    """A local path as an absolute one, names that are no paths as they are.

    Raises InputError if no record could name it.
    """
    if name.partition(":")[0] in NAMES or not Path(name).exists():
        return name
    return recordable(str(Path(name).absolute()))
