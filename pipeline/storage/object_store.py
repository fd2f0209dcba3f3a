"""How a filesystem that a URI names is reached: by pyarrow or fsspec for files, and by obstore for writes on a condition.

pyarrow gives up on a slow answer after three seconds, and on one that never comes after a minute and a half. Here S3 has
REQUEST_SECONDS to answer, and a request that fails is made again, at growing intervals, ATTEMPTS times in all.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow.fs as pafs

from tsdfm.schemas.base import InputError, first_line
from tsdfm.schemas.paths import redacted

ATTEMPTS = 8  # of one request, over about 40 s where each fails at once
CONNECT_SECONDS, REQUEST_SECONDS = 5.0, 15.0  # for a connection, and for the next byte of an answer
CONDITION_SECONDS = 60.0  # for one write on a condition, all attempts together: much less than a lease lives
OBJECT_STORES = ("s3", "gcs", "abfs")  # whose folders need not be made, as pyarrow calls them
_KNOWN = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "abfs": "abfs", "abfss": "abfss"}  # URI scheme -> obstore's


def filesystem_of(uri: str) -> tuple[pafs.FileSystem, str, Any]:
    """The filesystem of a URI, the folder's path in it, and what fsspec calls it, if it is fsspec's. Raises InputError."""
    try:
        filesystem, root = pafs.FileSystem.from_uri(uri)
        return _patient(filesystem), str(root), None
    except Exception as native:  # pyarrow raises several kinds for a scheme it does not know
        import fsspec

        try:
            inner, root = fsspec.core.url_to_fs(uri)
        except Exception as error:
            told = redacted(uri)
            why = first_line(error) if "Unrecognized filesystem type" in str(native) else first_line(native)
            raise InputError(f"{told}: no such filesystem ({why.replace(uri, told)}); give a path or a URI that pyarrow or "
                             "fsspec knows") from None
        return pafs.PyFileSystem(pafs.FSSpecHandler(inner)), root, inner


def _patient(filesystem: pafs.FileSystem) -> pafs.FileSystem:
    """The same filesystem with our time limits, which no URI can give; other filesystems than S3 as they are."""
    if not isinstance(filesystem, pafs.S3FileSystem):
        return filesystem
    _, (found,) = filesystem.__reduce__()
    settings = {name: value for name, value in found.items() if value not in ("", None)}
    if not settings["proxy_options"]["host"]:
        del settings["proxy_options"]
    limits = {"connect_timeout": CONNECT_SECONDS, "request_timeout": REQUEST_SECONDS}
    return pafs.S3FileSystem(**settings | limits, retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS))


@dataclass(frozen=True)
class Conditional:
    """Writes that the store makes only if nobody else has written meanwhile: If-None-Match and If-Match of HTTP.

    Paths are relative to the folder. Raises obstore's errors where the store can't be reached or refuses.
    """

    client: Any  # an ObjectStore of obstore

    def put(self, path: str, data: bytes, tag: str | None) -> str | None:
        """Write a file that must not be there (`tag` None), or must be the one of that tag. Returns its new tag, or None where
        it was refused."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotFoundError, PreconditionError

        try:
            done = obstore.put(self.client, path, data, mode="create" if tag is None else {"e_tag": tag}, use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return None
        except NotFoundError:
            if tag is None:  # it is the folder's bucket that is not there
                raise
            return None
        return str(done["e_tag"])

    def get(self, path: str) -> tuple[bytes, str] | None:
        """What a file holds, and its tag; None if there is no such file."""
        import obstore

        try:
            found = obstore.get(self.client, path)
        except FileNotFoundError:
            return None
        return bytes(found.bytes()), str(found.meta["e_tag"])

    def remove(self, path: str) -> None:
        """Delete a file, within CONDITION_SECONDS or not at all."""
        import obstore

        obstore.delete(self.client, path)

    def is_honoured(self, path: str, data: bytes) -> bool:
        """Whether the store does refuse: writes a new file, and tries to write it anew and over another."""
        return (self.put(path, data, None) is not None and self.put(path, data + b" ", None) is None
                and self.put(path, data + b" ", '"0"') is None)


def conditional_of(uri: str, filesystem: pafs.FileSystem, root: str) -> Callable[[], Conditional] | None:
    """Opens what writes on a condition into the folder of a URI; None where its kind of store is not known to have that.

    Args:
        uri: of the folder.
        filesystem: and `root`: what `filesystem_of` made of it.
    """
    scheme = _KNOWN.get(urlsplit(uri).scheme)
    if scheme is None or find_spec("obstore") is None:
        return None
    return lambda: Conditional(_client(scheme, uri, filesystem, root))


def _client(scheme: str, uri: str, filesystem: pafs.FileSystem, root: str) -> Any:
    """obstore's store of the folder of a URI, as pyarrow reads it."""
    from obstore.store import S3Store, from_url

    parts = urlsplit(uri)
    given = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    limits = {"connect_timeout": timedelta(seconds=CONNECT_SECONDS), "timeout": timedelta(seconds=REQUEST_SECONDS)}
    retries = {"max_retries": ATTEMPTS - 1, "retry_timeout": timedelta(seconds=CONDITION_SECONDS)}
    if scheme != "s3":
        where = parts.netloc if scheme.startswith("abfs") else parts.netloc.rpartition("@")[2]
        return from_url(f"{scheme}://{where}{parts.path}", client_options=limits, retry_config=retries)
    settings = dict[str, Any]()
    with suppress(AttributeError):
        settings["region"] = filesystem.region
    if parts.username and parts.password:
        _, (found,) = filesystem.__reduce__()
        settings |= {"access_key_id": found["access_key"], "secret_access_key": found["secret_key"]}
    elif not {"AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"} & os.environ.keys() and find_spec("boto3") is not None:
        from obstore.auth.boto3 import Boto3CredentialProvider

        settings["credential_provider"] = Boto3CredentialProvider()  # profiles, which obstore itself does not read
    endpoint = given.get("endpoint_override")
    if endpoint:
        endpoint = endpoint if "://" in endpoint else f"{given.get('scheme', 'https')}://{endpoint}"
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        settings["endpoint"] = endpoint
    bucket, _, prefix = root.strip("/").partition("/")
    return S3Store(bucket, prefix=prefix or None, client_options=limits | {"allow_http": True},
                   retry_config=retries, **settings)
