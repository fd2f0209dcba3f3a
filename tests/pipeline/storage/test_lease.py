"""Leases: one owner whoever comes together, hiccups are survived, nobody touches what is another's, and no clock is trusted."""

import json
import random
import threading
import time

import pytest

from tests.support import present
from tsdfm.pipeline.storage import lease as leases
from tsdfm.pipeline.storage.lease import lease
from tsdfm.pipeline.storage.locks import LOCK_FILE
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.progress import unheard


class Shelf:
    """A store that lists what was written, is slow in random ways, fails on request, and has a clock of its own, or none."""

    uri = "shelf://ds"

    def __init__(self, slow: float = 0.0, clock: float | None = 5e8) -> None:
        self.files: dict[str, tuple[bytes, float]] = {}
        self.slow, self.clock, self.failing = slow, clock, False
        self.lock = threading.Lock()
        self.written: list[tuple[int, str]] = []  # by which thread, what
        self.removed: list[tuple[int, str]] = []

    def _pass(self) -> None:
        time.sleep(random.random() * self.slow)
        if self.failing:
            raise OSError("503 slow down")

    def read(self, path: str) -> bytes | None:
        self._pass()
        found = self.files.get(path)
        return None if found is None else found[0]

    def write(self, path: str, data: bytes) -> None:
        self._pass()
        with self.lock:
            self.files[path] = data, time.monotonic()
            self.written.append((threading.get_ident(), path))
        self._pass()

    def remove(self, path: str) -> None:
        self._pass()
        with self.lock:
            self.files.pop(path, None)
            self.removed.append((threading.get_ident(), path))

    def names(self) -> list[str]:
        self._pass()
        with self.lock:
            found = sorted(self.files)
        self._pass()
        return found

    def modified(self, path: str) -> float | None:
        self._pass()
        found = self.files.get(path)
        return None if found is None or self.clock is None else self.clock + found[1]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, value in (("LEASE_SECONDS", 1.0), ("RENEW_SECONDS", 0.1), ("RETRY_SECONDS", 0.05), ("WATCH_SECONDS", 0.05), ("JITTER_SECONDS", 0.02)):
        monkeypatch.setattr(leases, name, value)


def leave(shelf: Shelf, name: str = LOCK_FILE, **fields: object) -> None:
    """A lease of a process that is gone."""
    shelf.write(name, json.dumps({"host": "gone", "pid": 1, "started": "then", **fields}).encode())


@pytest.mark.parametrize("clock", [5e8, None])
def test_of_many_that_come_together_one_owns(clock):
    for trial in range(20):
        shelf = Shelf(slow=0.002, clock=clock)
        owning: list[int] = []
        most, outcomes = [0], list[str]()
        ready = threading.Barrier(3)

        def run(shelf=shelf, owning=owning, most=most, outcomes=outcomes, ready=ready) -> None:
            ready.wait()
            try:
                with lease(shelf, unheard) as check:
                    owning.append(1)
                    most[0] = max(most[0], len(owning))
                    time.sleep(0.12)
                    check()
                    owning.pop()
                    outcomes.append("owned")
            except InputError:
                outcomes.append("refused")

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most[0] == 1, trial
        assert "owned" in outcomes
        assert shelf.files == {}


@pytest.mark.parametrize("clock", [5e8, -5e8, None])
def test_a_lease_that_nobody_renews_is_taken_over_after_its_time_and_not_before(clock):
    """Whatever the clocks say: the store's may be years from ours, and the dead owner's is not read."""
    shelf = Shelf(clock=clock)
    leave(shelf, renewed=time.time() + 1e6)
    if clock is not None:
        with pytest.raises(InputError, match=r"process 1 on gone, since then.*takes over in 1 s, or at once if you delete shelf://ds/.lock"), \
                lease(shelf, unheard):
            pass
        time.sleep(1.1)
    began = time.monotonic()
    with lease(shelf, unheard):
        assert clock is not None or time.monotonic() - began >= 1
        assert LOCK_FILE not in shelf.files
    assert shelf.files == {}


@pytest.mark.parametrize("held", [b"", b"{", b"[1]", b'"x"', b"\xff"])
def test_a_damaged_lease_is_one_like_others(held):
    shelf = Shelf()
    shelf.write(f"{LOCK_FILE}-x", held)
    with pytest.raises(InputError, match="another run is writing there"), lease(shelf, unheard):
        pass
    time.sleep(1.1)
    with lease(shelf, unheard):
        pass


def test_without_a_clock_an_owner_that_renews_is_seen_to_live():
    shelf = Shelf(clock=None)
    seen: list[str] = []
    with lease(shelf, unheard), pytest.raises(InputError, match="another run is writing there"), \
            lease(shelf, lambda stage, done, total, note="": seen.append(stage)):
        pass
    assert set(seen) == {"waiting to see whether the last run still lives"}


def test_hiccups_are_survived():
    shelf = Shelf()
    with lease(shelf, unheard) as check:
        shelf.failing = True
        time.sleep(0.5)
        shelf.failing = False
        time.sleep(0.4)
        check()
        with pytest.raises(InputError), lease(shelf, unheard):
            pass


def test_who_can_not_renew_in_time_stops_in_one_line():
    shelf = Shelf()
    with lease(shelf, unheard) as check:
        shelf.failing = True
        time.sleep(1.3)
        with pytest.raises(WorkError, match=r"does not own the dataset any more: its lease could not be renewed \(503 slow down\)"):
            check()


def test_a_late_owner_stops_and_leaves_what_is_the_next_ones(capfd):
    shelf = Shelf()
    with lease(shelf, unheard) as first:
        shelf.failing = True
        time.sleep(1.2)
        shelf.failing = False
        with lease(shelf, unheard) as second:
            theirs = set(shelf.files)
            time.sleep(0.3)
            second()
            assert len(theirs) == 1
            assert theirs <= shelf.files.keys()
            with pytest.raises(WorkError, match="does not own the dataset any more"):
                first()
    assert "Traceback" not in capfd.readouterr().err


def test_a_lease_taken_away_by_hand_stops_its_run():
    shelf = Shelf()
    with lease(shelf, unheard) as check:
        for name in list(shelf.files):
            del shelf.files[name]
        time.sleep(0.3)
        with pytest.raises(WorkError, match="taken away"):
            check()


def test_everybody_writes_its_own_object_only():
    shelf = Shelf(slow=0.002)
    leave(shelf)
    time.sleep(1.1)
    for _ in range(3):
        with lease(shelf, unheard):
            time.sleep(0.15)
    paths = [path for _, path in shelf.written]
    assert len(set(paths)) == 4
    assert paths == sorted(paths, key=lambda path: paths.index(path))  # each run's writes stand together: nobody returns to another's


def test_a_lease_on_a_real_filesystem_is_renewed_while_it_is_held():
    store = open_store("memory://renewed/out")
    with store.owned():
        [name] = [name for name in store.names() if name.startswith(LOCK_FILE)]
        first = json.loads(present(store.read(name)))["renewals"]
        deadline = time.monotonic() + 10
        while json.loads(present(store.read(name)))["renewals"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert [name for name in store.names() if name.startswith(LOCK_FILE)] == []
