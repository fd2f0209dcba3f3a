"""Fixtures of all tests."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: several processes run tests at a time

import pytest

from tests import loopback_s3
from tests.commands import end
from tests.heads import Head, ray_head
from tests.loopback_hub import TOKEN, LoopbackHub, use
from tests.support import Outcome, TinyModels, dataset_of, make_dataset, make_models

os.environ["TSDFM_CORPORA"] = tempfile.mkdtemp(prefix="tsdfm-test-corpora-")  # theirs are kept no longer than they run
atexit.register(shutil.rmtree, os.environ["TSDFM_CORPORA"], ignore_errors=True)
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # tests start clusters on loopback only, and write no token to HOME
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process for each training, that waits for what no cluster here announces


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that may take longer than others come first: while the last of them run, other processes have what to do."""
    def allowed(item: pytest.Item) -> float:
        mark = item.get_closest_marker("timeout")
        return max(300.0, mark.args[0]) if mark else 300.0

    items.sort(key=allowed, reverse=True)


def pytest_collection_finish() -> None:
    """What is there by now stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    models = make_models(tmp_path_factory.mktemp("models"))
    make_dataset(dataset_of(models), models)
    return models


@pytest.fixture(scope="session")
def shared_head() -> Iterator[Head]:
    with ray_head(2) as running:
        yield running


@pytest.fixture
def head(shared_head: Head) -> Iterator[Head]:
    """A Ray cluster of two CPUs, for the tests of this process of which none ends it."""
    yield shared_head
    # Of a training whose driver was killed: without a dashboard to ask, it never learns that there is nothing to clean.
    end(shared_head.workers("PlacementGroupCleaner"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on loopback, at which this process is logged in as `team`."""
    with LoopbackHub() as running:
        running.tokens = {TOKEN: "team"}
        use(running, tmp_path / "home", monkeypatch)
        yield running


@pytest.fixture(scope="session")
def s3_server():
    server = loopback_s3.LoopbackS3()
    yield server
    server.close()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """An empty S3 bucket on loopback, s3://shelf, which every client of this process reaches."""
    s3_server.clear()
    loopback_s3.use(s3_server, monkeypatch)
    return s3_server


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process: cli('verify', OUT) -> Outcome."""
    from tsdfm.jobs.cli import main

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["tsdfm-pipeline", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as leave:
            code = int(leave.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run
