"""Names of files and folders in configs: '~' is the home folder in all of them, and the secrets of URIs are told nowhere."""

import re
from os.path import expanduser
from typing import Annotated

from pydantic import AfterValidator, Field

_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>[^\s'\"<>]*)")
_PORT = re.compile(r"[^:]*:[0-9]+|\[[0-9a-fA-F:.]*\](:[0-9]+)?")  # a host whose colon is no password's
_NO_CHARACTER = re.compile("[\ud800-\udfff]")  # half of a pair in UTF-16
NAME_BYTES = 255  # of a file's or folder's own name, on every disk of Linux
_NAMING = ("hf", "abfs", "abfss", "wasb", "wasbs")  # what stands before their '@' names a place


def is_text(name: str) -> bool:
    """Whether a name is of characters. Bytes that are not UTF-8 come from a shell as something else, which JSON can't hold."""
    return name.isascii() or not _NO_CHARACTER.search(name)


def check_name(name: str) -> str:
    """A name as it is. Raises ValueError if nothing can be called so, or no record could say it."""
    if not is_text(name):
        raise ValueError(f"{name!r} is not UTF-8, so no record could name it; give another name, or a link's")
    if "\0" in name:
        raise ValueError(f"{name!r} holds a NUL character, which no name can; leave it out")
    long = [part for part in name.split("/") if len(part.encode()) > NAME_BYTES] if "://" not in name else []
    if long:
        raise ValueError(f"'{long[0]:.20}...' is longer than {NAME_BYTES} bytes, which no name of a file is; shorten it")
    return name


def _at_home(name: str) -> str:
    return check_name(expanduser(name) if name.startswith("~") else name)


PathName = Annotated[str, AfterValidator(_at_home), Field(min_length=1)]  # of a file or folder; a URI, or a name, as it is


def redacted(text: str) -> str:
    """A text without the secrets of the URIs in it: user information and query are left out of each.

    's3://KEY:SECRET@bucket/ds?token=T' becomes 's3://bucket/ds'. What stands before an '@' stays where it names a place
    ('hf://datasets/USER/NAME@REVISION', 'abfs://container@account/ds'), unless a password stands there.
    """
    return _URI.sub(_bare, text)


def _bare(found: re.Match[str]) -> str:
    scheme, rest = found["scheme"], found["rest"]
    place, mark, query = rest.partition("?")
    end = query[len(query.rstrip(".,:;)")):] if mark else ""  # of the sentence, not of the URI
    host, slash, path = place.partition("/")
    if scheme.lower() in _NAMING and ":" not in host:
        return f"{scheme}://{place}{end}"
    if "@" in host:
        host = host.rpartition("@")[2]
    elif ":" in host and not _PORT.fullmatch(host) and "@" in path:  # a password with a slash that was not escaped
        host, slash, path = path.rpartition("@")[2].partition("/")
    return f"{scheme}://{host}{slash}{path}{end}"
