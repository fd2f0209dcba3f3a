"""One run at a time owns a dataset on an object store, where there are no locks: by a lease, a small object that is renewed.

    OUT/.lock            the lease, where the store writes on a condition (`object_store.Conditional`)
    OUT/.lock-TOKEN      one for every run that owns the dataset, or asks for it, where it does not

**On a condition.** `.lock` is written only if there is none. It is renewed, and a dead one taken over, only if it is still
what was read last. So the store itself sees to it that there is one owner. It is tried out each time whether the store does
refuse.

**By order.** Where a store has no such writes, or can't be asked for them, every run writes an object of its own, under a
name that nobody else uses, and then lists what is there. A run that sees itself alone owns the dataset. Of two that come
together, the one that lists last sees the other, for stores list what was written (S3, GCS and Azure do); so they can't both
be alone. Whoever is not alone takes its object away and tries again, or gives up. Nobody ever overwrites or deletes what is
another's, with one exception: who finds a lease dead says so in its own object (`over`) and then deletes the dead one. An
owner that wakes up late finds its lease gone, or itself named, and stops.

Both kinds list after they have written, so they see each other, too.

A lease is dead if it was not renewed for LEASE_SECONDS. Clocks of two machines are never compared: its age is the difference
of two times that the store gave, or, where the store gives none, how long it was seen not to change.
"""

import contextlib
import json
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Protocol

from tsdfm.pipeline.storage.locks import LOCK_FILE, fields_of, owner_of, this_process
from tsdfm.pipeline.storage.object_store import Conditional
from tsdfm.schemas.base import InputError, WorkError, first_line
from tsdfm.schemas.progress import Progress

log = logging.getLogger(__name__)

LEASE_SECONDS = 180.0  # a lease this old is dead: six renewals were missed
RENEW_SECONDS = 30.0
RETRY_SECONDS = 1.0  # after a renewal that failed; twice as long after each that follows
WATCH_SECONDS = 1.0
TRIAL = f"{LOCK_FILE}-trial-"  # what a run writes to try out conditions, and to read the store's clock
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
def lease(files: Files, progress: Progress, conditional: Callable[[], Conditional] | None = None
          ) -> Iterator[Callable[[], None]]:
    """Hold a dataset on a store without locks, and renew the lease meanwhile.

    Args:
        files: the dataset's folder.
        progress: hears what is waited for.
        conditional: opens what writes on a condition there; None: there is no such thing.

    Yields a check, which raises WorkError once the lease is lost: whoever holds it must ask before it commits anything.
    Raises InputError, naming the owner, if another run holds the dataset.
    """
    held = _acquired(files, progress, conditional)
    thread = threading.Thread(target=held.keep, daemon=True)
    thread.start()
    try:
        yield held.check
    finally:
        held.leaving.set()
        thread.join()
        with contextlib.suppress(Exception):  # a lease that can't be deleted dies by itself
            held.leave()


def _acquired(files: Files, progress: Progress, conditional: Callable[[], Conditional] | None) -> "_Lease":
    if conditional is not None:
        held = _conditional_lease(files, progress, conditional)
        if held is not None:
            held.acquire()
            return held
    ordered = _Lease(files, progress)
    ordered.acquire()
    return ordered


def _conditional_lease(files: Files, progress: Progress, opener: Callable[[], Conditional]) -> "_ConditionalLease | None":
    """A lease that the store keeps, not acquired yet; None, and a line that says why, where it can't be had."""
    trial = f"{TRIAL}{uuid.uuid4().hex}"
    files.names()  # tells in the store's own words if it can't be reached at all
    try:
        conditional = opener()
        if conditional.is_honoured(trial, b"{}"):
            return _ConditionalLease(files, progress, conditional, trial)
        why = "the store overwrites where it is asked not to"
    except Exception as error:  # of a client that knows other credentials than pyarrow does, say
        why = first_line(error)
    with contextlib.suppress(Exception):
        files.remove(trial)
    log.warning("%s: no writes on a condition there (%s), so the order of listed objects decides who owns it; it must "
                "list what was just written", files.uri, why)
    return None


class _Lease:
    """One run's lease, or its wish for one, by order."""

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

    def leave(self) -> None:
        """Give the lease up."""
        self.files.remove(self.name)

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


class _ConditionalLease(_Lease):
    """One run's lease, which the store itself keeps single."""

    def __init__(self, files: Files, progress: Progress, conditional: Conditional, trial: str) -> None:
        super().__init__(files, progress)
        self.conditional, self.trial = conditional, trial
        self.token = self.name
        self.name = LOCK_FILE
        self._tag: str | None = None  # of the lease as this run wrote it last

    def acquire(self) -> None:
        """See `lease`."""
        try:
            for _ in range(ATTEMPTS):
                there = self.conditional.get(LOCK_FILE)
                if there is not None:
                    self._check_dead(LOCK_FILE)
                if self._put(None if there is None else there[1]):
                    break
            else:
                raise InputError(self._busy(LOCK_FILE, None))
            for name in self._others():
                if name != self.trial:
                    self._check_gone(name)
        except BaseException:
            with contextlib.suppress(Exception):
                self.leave()
            raise
        finally:
            with contextlib.suppress(Exception):
                self.files.remove(self.trial)

    def _age(self, name: str) -> float | None:
        """Seconds since a lease was renewed, by the store's clock, which the trial has just been stamped by."""
        mine, theirs = self.files.modified(self.trial), self.files.modified(name)
        return None if mine is None or theirs is None else mine - theirs

    def _check_dead(self, name: str) -> None:
        """Raises InputError if a lease lives."""
        age = self._age(name)
        if age is not None and age < LEASE_SECONDS:
            raise InputError(self._busy(name, age))

    def _check_gone(self, name: str) -> None:
        """Delete what a run by order, or a trial, has left behind. Raises InputError if that run lives."""
        age = self._age(name)
        if age is None or age >= LEASE_SECONDS:
            self.files.remove(name)
        elif not name.startswith(TRIAL):
            raise InputError(self._busy(name, age))

    def _put(self, tag: str | None) -> bool:
        """Write the lease if it is still the one of that tag, or (None) if there is none. Returns whether this run has it.

        A write that was made, but whose answer was lost, is tried again and refused: so look whose it is.
        """
        began = time.monotonic()
        self._renewals += 1
        fields = {**this_process(), "owns": True, "token": self.token, "renewals": self._renewals}
        found = self.conditional.put(LOCK_FILE, json.dumps(fields).encode(), tag)
        if found is None:
            there = self.conditional.get(LOCK_FILE)
            if there is None or fields_of(there[0]).get("token") != self.token:
                return False
            found = there[1]
        self._tag, self._renewed = found, began
        return True

    def _renewed_or_why(self) -> str:
        if self._put(self._tag):
            return ""
        held = self.files.read(LOCK_FILE)
        if held is None:
            return "its lease was taken away by hand"
        return f"its lease was taken over ({owner_of(held)})"

    def leave(self) -> None:
        """Delete the lease while it surely is this run's: nobody takes it over as long as it lives."""
        if self._tag is not None and not self._lost and time.monotonic() - self._renewed < LEASE_SECONDS / 2:
            self.conditional.remove(LOCK_FILE)
