"""Names of files and folders in configs: '~' is the home folder, in all of them alike."""

from os.path import expanduser
from typing import Annotated

from pydantic import AfterValidator, Field


def _at_home(name: str) -> str:
    return expanduser(name) if name.startswith("~") else name


PathName = Annotated[str, AfterValidator(_at_home), Field(min_length=1)]  # of a file or folder; a URI, or a name, as it is
