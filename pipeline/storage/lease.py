"""One run at a time owns a dataset on an object store, where there are no locks: by a lease, a small object that is renewed.

    OUT/.lock-TOKEN      one for every run that owns the dataset, or asks for it

Every run writes an object of its own, under a name that nobody else uses, and then lists what is there. A run that sees itself
alone owns the dataset. Of two that come together, the one that lists last sees the other, for stores list what was written
(S3, GCS and Azure do); so they can't both be alone. Whoever is not alone takes its object away and tries again, or gives up.
That needs no conditional writes, which not all stores have and pyarrow does not offer, and nobody ever overwrites or deletes
what is another's, with one exception: who finds a lease dead says so in its own object (`over`) and then deletes the dead one.
An owner that wakes up late finds its lease gone, or itself named, and stops.

A lease is dead if it was not renewed for LEASE_SECONDS. Clocks of two machines are never compared: its age is the difference of
two times that the store gave, or, where the store gives none, how long it was seen not to change.
"""

import contextlib
import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Protocol

from tsdfm.pipeline.storage.locks import LOCK_FILE, fields_of, owner_of, this_process
from tsdfm.schemas.base import InputError, WorkError, first_line
from tsdfm.schemas.progress import Progress

LEASE_SECONDS = 180.0  # a lease this old is dead: six renewals were missed
RENEW_SECONDS = 30.0
RETRY_SECONDS = 1.0  # after a renewal that failed; twice as long after each that follows
WATCH_SECONDS = 1.0
ATTEMPTS = 10  # of runs that come at the same time, and see each other
JITTER_SECONDS = 0.2


class Files(Protocol):
    """Whatever holds small files by path: what a lease needs of a store."""

    uri: str

    def read(self, path: str) -> bytes | None:
        """The file's bytes, or None."""

    def write(self, path: str, data: bytes) -> None:
        """Put a file, whole or not at all."""

    def remove(self, path: str) -> None:
        """Delete a file if it exists."""

    def names(self) -> list[str]:
        """Names of the files at the top, as they are now."""

    def modified(self, path: str) -> float | None:
        """When the file was written, in seconds of the store's own clock; None if there is no such file or no such clock."""


@contextlib.contextmanager
def lease(files: Files, progress: Progress) -> Iterator[Callable[[], None]]:
    """Hold a dataset on a store without locks, and renew the lease meanwhile.

    Yields a check, which raises WorkError once the lease is lost: whoever holds it must ask before it commits anything.
    Raises InputError, naming the owner, if another run holds the dataset.
    """
    held = _Lease(files, progress)
    held.acquire()
    thread = threading.Thread(target=held.keep, daemon=True)
    thread.start()
    try:
        yield held.check
    finally:
        held.leaving.set()
        thread.join()
        with contextlib.suppress(Exception):  # a lease that can't be deleted dies by itself
            files.remove(held.name)


class _Lease:
    """One run's lease, or its wish for one."""

    def __init__(self, files: Files, progress: Progress) -> None:
        self.files, self.progress = files, progress
        self.name = f"{LOCK_FILE}-{uuid.uuid4().hex}"
        self.leaving = threading.Event()
        self._lost = ""
        self._renewals, self._renewed = 0, 0.0
        self._dead: dict[str, bytes | None] = {}  # leases that were found dead, and what they said

    def acquire(self) -> None:
        """See `lease`."""
        others: list[str] = []
        try:
            for attempt in range(ATTEMPTS):
                self._write(owns=False)
                # One that has moved since lives; one that moves from now on sees that it is taken over.
                self._dead = {name: held for name, held in self._dead.items() if self.files.read(name) in (held, None)}
                others = [name for name in self._others() if name not in self._dead]
                if not others:
                    break
                seen = {name: (self.files.read(name), self._age(name)) for name in others}
                self.files.remove(self.name)
                self._dead |= {name: held for name, (held, age) in seen.items() if self._is_dead(name, held, age)}
                time.sleep(random.random() * JITTER_SECONDS * 2 ** min(attempt, 4))
            else:
                raise InputError(self._busy(others[0], None))
            for name in self._dead:
                self.files.remove(name)
            self._write(owns=True)
        except BaseException:
            with contextlib.suppress(Exception):
                self.files.remove(self.name)
            raise

    def _others(self) -> list[str]:
        return [name for name in self.files.names() if name.startswith(LOCK_FILE) and name != self.name]

    def _write(self, *, owns: bool) -> None:
        self._renewals += 1
        began = time.monotonic()
        fields = {**this_process(), "owns": owns, "over": sorted(self._dead), "renewals": self._renewals}
        self.files.write(self.name, json.dumps(fields).encode())
        self._renewed = began

    def _age(self, name: str) -> float | None:
        """Seconds since a lease was renewed, by the store's clock; None if that can't be told."""
        mine, theirs = self.files.modified(self.name), self.files.modified(name)
        return None if mine is None or theirs is None else mine - theirs

    def _is_dead(self, name: str, held: bytes | None, age: float | None) -> bool:
        """Whether a lease is dead; one that is gone, or only asked for, is not. Raises InputError if it lives."""
        if held is None or (age is not None and age < LEASE_SECONDS and not fields_of(held).get("owns", True)):
            return False
        if age is None:
            return self._is_still(name, held)
        if age < LEASE_SECONDS:
            raise InputError(self._busy(name, age))
        return True

    def _is_still(self, name: str, held: bytes) -> bool:
        """Watch a lease for its time to live, as there is no clock. Raises InputError as soon as its owner renews it."""
        since = time.monotonic()
        while (passed := time.monotonic() - since) < LEASE_SECONDS:
            self.progress("waiting to see whether the last run still lives", round(passed), round(LEASE_SECONDS),
                          f"{self.files.uri}/{name}")
            time.sleep(min(WATCH_SECONDS, LEASE_SECONDS - passed))
            now = self.files.read(name)
            if now is None:
                return False
            if now != held:
                if fields_of(now).get("owns", True):
                    raise InputError(self._busy(name, 0.0))
                held, since = now, time.monotonic()
        return True

    def _busy(self, name: str, age: float | None) -> str:
        owner = owner_of(self.files.read(name))
        rest = LEASE_SECONDS if age is None else max(1.0, LEASE_SECONDS - age)
        return (f"{self.files.uri}: another run is writing there ({owner}); wait for it, stop it, or give another --out; if it "
                f"is gone, the same command takes over in {rest:.0f} s, or at once if you delete {self.files.uri}/{name}")

    def keep(self) -> None:
        """Renew until the run leaves, or the lease is lost."""
        while not self._lost and not self.leaving.wait(RENEW_SECONDS):
            self._renew()

    def _renew(self) -> None:
        """Renew once, again and again after failures while the lease lives."""
        pause = RETRY_SECONDS
        while True:
            try:
                self._lost = self._renewed_or_why()
            except Exception as error:
                if time.monotonic() + pause - self._renewed >= LEASE_SECONDS:
                    self._lost = f"its lease could not be renewed ({first_line(error)})"
                elif not self.leaving.wait(pause):
                    pause *= 2
                    continue
            return

    def _renewed_or_why(self) -> str:
        """'' if the lease was renewed, else why it is lost."""
        if self.files.read(self.name) is None:
            return "its lease was taken away, by another run that found it dead or by hand"
        self._write(owns=True)
        for name in self._others():
            held = self.files.read(name)
            if self.name in str(fields_of(held).get("over", "")):
                return f"its lease was taken over ({owner_of(held)})"
        return ""

    def check(self) -> None:
        """Raises WorkError once the lease is lost, or was not renewed in time."""
        if not self._lost and time.monotonic() - self._renewed >= LEASE_SECONDS:
            self._lost = f"its lease was not renewed for {LEASE_SECONDS:.0f} s"
        if self._lost:
            raise WorkError(f"{self.files.uri}: this run does not own the dataset any more: {self._lost}; finished shards are "
                            "kept, and once nobody writes there the same command goes on")
