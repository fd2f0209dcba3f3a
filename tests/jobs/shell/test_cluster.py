"""How many cores a job takes, where a container allows fewer than the machine has; and where Ray keeps its sockets."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import threading
import time
import uuid
from pathlib import Path

import psutil
import pytest
import ray

from tests.commands import running
from tests.support import present
from tsdfm.jobs.shell import cluster
from tsdfm.jobs.shell.cluster import _short_folder, cores_here
from tsdfm.schemas.base import InputError, WorkError

BOUND = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("quota", "cores"), [
    ("max 100000", BOUND), ("100000 100000", 1), ("50000 100000", 1), ("999900000 100000", BOUND), ("nonsense", BOUND)])
def test_the_quota_of_cgroups_2(tmp_path, quota, cores):
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert cores_here(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", BOUND), ("100000", 1), ("150000", min(2, BOUND))])
def test_the_quota_of_cgroups_1(tmp_path, quota, cores):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores_here(tmp_path) == cores


def test_no_cgroups(tmp_path):
    assert cores_here(tmp_path / "nothing") == BOUND


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_of_too_long_a_name_for_sockets_is_stood_in_for(tmp_path, monkeypatch, name):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, "/tmp")
    with _short_folder() as folder:
        assert folder is None
    monkeypatch.setenv(name, str(tmp_path / ("long" * 20)))
    with _short_folder() as folder:
        assert Path(present(folder)).is_dir()
        assert len(present(folder)) < 30
    assert not Path(present(folder)).exists()
    monkeypatch.setattr(cluster, "SHORT", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"TMPDIR .*: too long a name for Ray's sockets"), _short_folder():
        pass


@pytest.mark.parametrize("failures", [2, 3])
def test_ray_that_does_not_start_is_started_again_twice(monkeypatch, capsys, failures):
    begun = []

    def slow(**options):
        begun.append(options)
        if len(begun) <= failures:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", slow)
    if failures < 3:
        with cluster.cluster("local", 1):
            pass
    else:
        with pytest.raises(WorkError, match=r"Ray did not start on this machine \(The current node timed out"), cluster.cluster("local", 1):
            pass
    assert len(begun) == 3
    assert capsys.readouterr().err.count("trying again") == 2


@pytest.mark.parametrize("error", [UnicodeEncodeError("utf-8", "x", 0, 1, "why"), TypeError("why"), ValueError("why")])
def test_what_no_time_mends_is_told_at_once(monkeypatch, capsys, error):
    begun = []

    def faulty(**options):
        begun.append(options)
        raise error

    monkeypatch.setattr("ray.init", faulty)
    with pytest.raises(WorkError, match=r"Ray can't start on this machine \(.*why\)"), cluster.cluster("local", 1):
        pass
    assert len(begun) == 1
    assert capsys.readouterr().err == ""


def test_what_is_half_started_as_it_is_interrupted_is_ended_and_nothing_else(monkeypatch):
    left: list[str] = []
    started: list[psutil.Process] = []

    def interrupted(**options):
        process = subprocess.Popen(["sh", "-c", "sleep 100 & echo here; wait"], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        started.extend([psutil.Process(process.pid), *psutil.Process(process.pid).children()])
        raise KeyboardInterrupt

    monkeypatch.setattr("ray.init", interrupted)
    monkeypatch.setattr(cluster, "leave_at_once", left.append)
    with subprocess.Popen(["sleep", "100"]) as former:
        with pytest.raises(KeyboardInterrupt), cluster.cluster("local", 1):
            raise AssertionError("the job has begun")
        assert former.poll() is None
        former.kill()
    assert len(started) == 2
    assert [process.pid for process in started if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert left == ["Ray"]


def test_the_handler_that_ray_takes_away_as_it_ends_is_given_back(monkeypatch):
    heard: list[int] = []
    monkeypatch.setattr("ray.shutdown", lambda: ctypes.CDLL(None).signal(signal.SIGTERM, None))  # the default, as its core does
    former = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        cluster._let_go()
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert heard == [signal.SIGTERM]


# What Ray's core says of a signal that comes while it starts (see `cluster._handlers_kept`), as it is and as a line of its log.
OF_RAYS_CORE = re.compile(r"(\[.* logging\.cc:\d+: )?(\*\*\* SIGTERM received| *(PC: )?@ )")
STARTING = """
import tsdfm.jobs.cli as cli
from tsdfm.jobs.shell.cluster import cluster
def run():
    print("here", flush=True)
    with cluster("local", 1):
        print("started", flush=True)
cli.cli.main = lambda **options: run()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "moments"), [(signal.SIGTERM, (0, 2, 5, 10, 15, 20, 30, 40)), (signal.SIGINT, (7, 17))],
                         ids=["SIGTERM", "SIGINT"])
def test_at_whatever_moment_of_its_start_ray_is_interrupted_all_of_it_ends_soon(number, moments):
    mark = uuid.uuid4().hex
    for tenths in moments:
        with running(code=f"import os; os.environ['STARTED_BY'] = {mark!r}\n{STARTING}") as process:
            process.stdout.readline()
            time.sleep(tenths / 10)
            process.send_signal(number)
            printed, said = process.communicate(timeout=10)
        if "started" not in printed:
            ours = [line for line in said.splitlines() if not OF_RAYS_CORE.match(line)]
            assert (process.returncode, len(ours)) == (130, 1), (tenths, said)
        time.sleep(2)  # what sees that its parent is gone may end by itself
        assert [each.cmdline() for each in marked(mark)] == [], tenths


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("STARTED_BY") == mark:
                found.append(process)
    return found


@pytest.mark.parametrize(("seconds", "asked"), [(0.2, []), (1e3, ["a thread in Ray's core"])])
def test_no_thread_that_uses_ray_is_alive_when_python_ends(monkeypatch, seconds, asked):
    """It is waited for, once Ray is let go of; if it stays, the process leaves at once, also where the block ends in a fault."""
    asks: list[str] = []
    over = threading.Event()
    thread = threading.Thread(target=over.wait, args=(seconds,), daemon=True)
    monkeypatch.setattr(cluster, "END_SECONDS", 0.5)
    monkeypatch.setattr(cluster, "leave_at_once", asks.append)
    monkeypatch.setattr(cluster, "_connect", lambda *_: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)

    def work() -> None:
        with cluster.cluster("local", 1):
            cluster.awaited_at_end(thread)
            thread.start()
            raise WorkError("the loss is nan")

    with pytest.raises(WorkError):
        work()
    assert (asks, thread.is_alive()) == (asked, bool(asked))
    over.set()
    assert not cluster._users
