"""What a worker runs: the function of a piece, while its process gives signs of life, also between two pieces.

A worker that stops between two pieces would else never be missed: Ray hands it the next one, which then never begins.
"""

import os
import socket
import threading
import time
from contextlib import suppress
from itertools import count
from typing import Any

import ray
from ray import cloudpickle

from tsdfm.jobs.crew.signs import Sign, birth
from tsdfm.schemas.base import InputError, WorkError

BEAT_SECONDS = 2.0


class _Heart:
    """Tells the driver's actor every few seconds that this process lives, and what it is at work on."""

    def __init__(self) -> None:
        self._node, self._node_id, self._pid = node_name(), ray.get_runtime_context().get_node_id(), os.getpid()
        self._born, self._beats, self._key = birth(self._pid), count(), ""
        self._signs: Any = None
        threading.Thread(target=self._keep, daemon=True).start()

    def begins(self, key: str, signs: Any) -> None:
        """The attempt `key` at a piece begins; tell it at once to the actor `signs`, and go on telling it."""
        self._key, self._signs = key, signs
        self._beat()

    def ends(self) -> None:
        """It is over."""
        self._key = ""

    def _keep(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            self._beat()

    def _beat(self) -> None:
        with suppress(Exception):  # whoever listens may be gone, and the piece is worth finishing all the same
            self._signs.beat.remote(Sign(self._node, self._node_id, self._pid, self._born, next(self._beats), self._key))


_hearts: list[_Heart] = []  # of this process: one, from its first piece on


def node_name() -> str:
    """This node, as people may find it."""
    return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"


def work(packed: bytes, key: str, signs: Any) -> Any:
    """Do a piece.

    Args:
        packed: by `ray.cloudpickle`: the function and its arguments. They are unpacked here, not by Ray, so that signs of life
            are given while the libraries that they need are loaded.
        key: names this attempt to the actor `signs`.
    """
    if not _hearts:
        _hearts.append(_Heart())
    _hearts[0].begins(key, signs)
    try:
        function, arguments = cloudpickle.loads(packed)
        return function(*arguments)
    except (InputError, WorkError) as error:
        raise WorkError(f"node {node_name()}: {error}") from None
    finally:
        _hearts[0].ends()
