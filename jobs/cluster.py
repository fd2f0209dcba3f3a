"""Reach a Ray cluster, or start one on this machine, with its failures told in one line."""

import logging
import os
import secrets
import socket
from urllib.parse import urlsplit

import ray

from tsdfm.schemas.base import InputError, WorkError

CONNECT_SECONDS = 5.0
OBJECT_STORE_BYTES = 128 << 20  # only receipts travel
_NOT_FOUND = "start one with 'ray start --head', or leave out --address to run on this machine"


def connect(address: str, cpus: int | None) -> None:
    """`ray.init` on 'local' (a fresh cluster of `cpus` cores), 'auto', 'host:port' or 'ray://host:port'.

    Raises InputError if nobody listens there, WorkError if Ray can't start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        # Ray turns token mode on for a cluster it starts, unless RAY_AUTH_MODE says otherwise. With a token of this process
        # in the environment no other user of the machine gets in, and no token file is written to HOME.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        options = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    else:
        _check_listening(address)
        options = {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except ConnectionError:
        raise InputError(f"--address {address}: no Ray cluster found; {_NOT_FOUND}") from None
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WorkError(f"--address {address}: Ray did not start ({reason:.200})") from None


def _check_listening(address: str) -> None:
    """Ray takes a minute and many lines to say that nobody listens; ask first."""
    if address == "auto":
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port or parts.scheme not in ("", "ray"):
        raise InputError(f"--address {address}: not a Ray address; give 'local', 'auto', 'host:port' or 'ray://host:port'")
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise InputError(f"--address {address}: nobody listens there ({error.strerror or error}); {_NOT_FOUND}") from None
