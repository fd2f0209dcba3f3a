"""S3, by moto's server: one owner by writes on a condition, or by order where there are none; faults are survived, or told in one line."""

import json
import logging
import os
import threading
import time

import pytest

from tests.loopback_s3 import KEY, SECRET
from tests.support import make_dataset, present
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.storage import lease as leases
from tsdfm.pipeline.storage import object_store
from tsdfm.pipeline.storage.lease import lease
from tsdfm.pipeline.storage.locks import LOCK_FILE
from tsdfm.pipeline.storage.object_store import filesystem_of
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.storage.store import UriStore
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.progress import unheard

OUT = "s3://shelf/a%20folder/out"


@pytest.fixture
def quick(monkeypatch):
    """Leases live for three seconds: S3 tells the time in whole ones."""
    for name, value in (("LEASE_SECONDS", 3.0), ("RENEW_SECONDS", 0.2), ("RETRY_SECONDS", 0.05), ("JITTER_SECONDS", 0.02)):
        monkeypatch.setattr(leases, name, value)


def locks(store) -> list[str]:
    return [name for name in store.names() if name.startswith(LOCK_FILE)]


def leave(store, name: str = LOCK_FILE, **fields: object) -> None:
    """A lease of a process that is gone."""
    store.write(name, json.dumps({"host": "gone", "pid": 1, "started": "then", **fields}).encode())


def by_order(store):
    """The lease of a run that can't write on a condition."""
    return lease(store, unheard)


def test_files_are_read_back_listed_moved_and_removed(s3):
    store = open_store(OUT)
    assert store.names() == []
    store.write("data/a", b"one")
    store.write("b", b"")
    store.move("data/a", "data/c")
    assert store.read("data/a") is None
    assert (store.read("data/c"), store.read("b")) == (b"one", b"")
    assert (store.names(), store.names("data")) == (["b", "data"], ["c"])
    store.remove("b")
    store.remove("b")
    assert store.inside("data").read("c") == b"one"
    assert store.names() == ["data"]


@pytest.mark.usefixtures("quick")
def test_of_many_that_come_together_one_owns(s3):
    stores = [open_store(OUT) for _ in range(4)]
    for trial in range(4):
        owning, most, outcomes, ready = list[int](), [0], list[str](), threading.Barrier(len(stores))

        def run(store, owning=owning, most=most, outcomes=outcomes, ready=ready) -> None:
            ready.wait()
            try:
                with store.owned() as check:
                    owning.append(1)
                    most[0] = max(most[0], len(owning))
                    time.sleep(0.3)
                    check()
                    owning.pop()
                    outcomes.append("owned")
            except InputError:
                outcomes.append("refused")

        threads = [threading.Thread(target=run, args=(store,)) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most[0] == 1, trial
        assert len(outcomes) == len(stores)
        assert locks(stores[0]) == []


@pytest.mark.usefixtures("quick")
def test_who_must_wait_is_told_for_whom_for_how_long_and_how_not_to(s3):
    store = open_store(OUT)
    with store.owned() as check:
        assert locks(store) == [LOCK_FILE]
        with pytest.raises(InputError, match=rf"process {os.getpid()} on \S+, since .*takes over in \d s, or at once if you delete {OUT}/.lock"), \
                open_store(OUT).owned():
            pass
        time.sleep(0.7)
        assert json.loads(present(store.read(LOCK_FILE)))["renewals"] > 2
        check()
    assert locks(store) == []


@pytest.mark.usefixtures("quick")
def test_a_dead_lease_is_taken_over_by_one_and_its_late_owner_stops(s3):
    store = open_store(OUT)
    with store.owned() as first:
        s3.faults.fails, s3.faults.only = 10**6, lambda method, path: method == "PUT"
        leases_written = present(store.read(LOCK_FILE))
        time.sleep(4.1)
        s3.faults.fails = 0
        with open_store(OUT).owned() as second:
            assert store.read(LOCK_FILE) != leases_written
            time.sleep(0.5)
            second()
            with pytest.raises(WorkError, match="does not own the dataset any more"):
                first()
    assert locks(store) == []


@pytest.mark.usefixtures("quick")
def test_a_lease_deleted_by_hand_is_free_at_once_and_stops_its_run(s3):
    store = open_store(OUT)
    with store.owned() as first:
        store.remove(LOCK_FILE)
        with open_store(OUT).owned() as second:
            time.sleep(0.5)
            second()
            with pytest.raises(WorkError, match="taken"):
                first()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("first", ["by order", "on a condition"])
def test_both_kinds_of_lease_see_each_other(s3, first):
    store, other = open_store(OUT), open_store(OUT)
    one, two = (by_order(store), other.owned()) if first == "by order" else (other.owned(), by_order(store))
    with one, pytest.raises(InputError, match="another run is writing there"), two:
        pass
    leave(store, f"{LOCK_FILE}-old", owns=True)
    time.sleep(4.1)
    with store.owned():
        assert locks(store) == [LOCK_FILE]


def test_a_store_that_does_not_honour_conditions_is_held_by_order_and_that_is_said_in_one_line(s3, caplog):
    s3.faults.ignores = True
    store = open_store(OUT)
    with caplog.at_level(logging.WARNING, "tsdfm"), store.owned(), pytest.raises(InputError, match="another run is writing there"), \
            open_store(OUT).owned():
        pass
    assert [record.getMessage().partition("(")[0] for record in caplog.records] == [f"{OUT}: no writes on a condition there "] * 2
    assert "the store overwrites where it is asked not to" in caplog.text
    assert locks(store) == []


def test_other_credentials_than_the_environments_and_an_endpoint_are_taken_from_the_uri(s3, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    store = open_store(f"s3://{KEY}:{SECRET}@shelf/named?endpoint_override=127.0.0.1:{s3.port}&scheme=http&region=us-east-1")
    assert store.uri == "s3://shelf/named"
    with store.owned():
        assert locks(store) == [LOCK_FILE]


def test_a_dataset_there_equals_the_local_one_though_one_request_of_twenty_fails(s3, tmp_path, tiny_models):
    local = make_dataset(tmp_path / "out", tiny_models)
    s3.faults.every = 20
    assert make_dataset(OUT, tiny_models) == local
    assert verify(open_store(OUT))[1] == []


def test_an_outage_and_a_slow_answer_are_survived(s3):
    store = open_store(OUT)
    for status in (503, 500):
        s3.faults.status, s3.faults.fails = status, 1
        store.write("data/a", b"one")
        s3.faults.fails = 2
        assert store.read("data/a") == b"one"
        s3.faults.fails = 2
        assert store.names("data") == ["a"]
    s3.faults.slow = 3.5  # pyarrow alone gives up after 3
    assert store.read("data/a") == b"one"


def test_a_store_that_fails_for_ever_is_told_in_one_line(s3, monkeypatch):
    monkeypatch.setattr(object_store, "ATTEMPTS", 2)
    s3.faults.fails = 10**6
    store = open_store(OUT)
    for act in (lambda: store.read("a"), lambda: store.write("a", b""), lambda: store.names(), lambda: store.remove("a"),
                lambda: store.owned().__enter__()):
        with pytest.raises(WorkError, match=r"s3://shelf/a%20folder/out.*cannot") as told:
            act()
        assert SECRET not in str(told.value)


def test_a_store_that_never_answers_is_told_in_one_line(s3, monkeypatch):
    monkeypatch.setattr(object_store, "ATTEMPTS", 2)
    monkeypatch.setattr(object_store, "REQUEST_SECONDS", 1.0)
    s3.faults.slow = 20
    with pytest.raises(WorkError, match=r"cannot list it"):
        open_store(OUT).owned().__enter__()


def test_the_limits_reach_the_client(s3):
    filesystem, root, _ = filesystem_of(OUT)
    _, (settings,) = filesystem.__reduce__()
    assert root == "shelf/a folder/out"
    assert (settings["connect_timeout"], settings["request_timeout"]) == (object_store.CONNECT_SECONDS, object_store.REQUEST_SECONDS)
    assert isinstance(open_store(OUT), UriStore)
