"""What an output may stand beside, or take the place of: nothing that a command has not made is lost to it."""

from collections.abc import Callable, Collection
from pathlib import Path

from tsdfm.schemas.base import InputError
from tsdfm.schemas.regular import read_regular

NAMED = 3  # files in a message
LOCK = ".lock"  # which says nothing of what a folder holds


def check_folder(folder: Path, ours: Collection[str], what: str) -> None:
    """Refuse a folder that holds files and none of those by which a command knows its own. Raises InputError.

    Args:
        folder: the command's --out, which need not be there.
        ours: names of files and folders, one of which is there as soon as the command has written anything.
        what: the folder is, as in "no sweep".
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: cannot write there (it is a file); give a folder you can write to")
    names = sorted(path.name for path in folder.iterdir() if path.name != LOCK) if folder.exists() else []
    if names and not set(ours) & set(names):
        raise InputError(f"{folder}: holds files and no {what} ({', '.join(names[:NAMED])}); give an empty --out, or that of "
                         "one")


def check_file(file: Path, flag: str, is_ours: Callable[[bytes], bool], what: str) -> None:
    """Refuse to write over a file of another kind. Raises InputError.

    Args:
        file: what `flag` names, which need not be there, or is empty.
        flag: as typed, e.g. "--html".
        is_ours: tells by its bytes whether a file is of the kind that will be written.
        what: that kind, as in "is no page".
    """
    try:
        data = read_regular(file)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{flag} {file}: can't be written ({error.strerror}); give another file") from None
    if data and not is_ours(data):
        raise InputError(f"{flag} {file}: is there and is no {what}, and would be lost; give another file, or remove it")
