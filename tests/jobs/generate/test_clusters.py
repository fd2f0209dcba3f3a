"""The job on a real cluster of several nodes, on this machine: what is lost, missing, stopped or taken does not hang or end the run."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.commands import end, family, named, running, wait_for
from tests.jobs.generate.test_run import SHARDS, bytes_of, config_file, shards_in
from tests.support import make_dataset, present

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
# With a shorter time to wait for a sign of life.
IMPATIENT = "import tsdfm.jobs.crew.tasks as tasks; tasks.SILENT_SECONDS = 12.0\nfrom tsdfm.jobs.cli import main; main()"


@contextlib.contextmanager
def cluster(cpus: int) -> Iterator[Any]:
    """A head with so many CPUs; nothing of it outlives the test."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, "include_dashboard": False})
    try:
        yield started
    finally:
        left = [each for process in of_nodes(started) for each in (*family(process.pid), process)]
        started.shutdown()
        end(left)


def of_nodes(nodes: Any, *kinds: str) -> list[psutil.Process]:
    """The processes that a cluster was started with, or those of some kinds."""
    found = []
    for node in nodes.list_all_nodes():
        for kind, started in node.all_processes.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [psutil.Process(each.process.pid) for each in started if not kinds or kind in kinds]
    return found


def workers() -> list[psutil.Process]:
    """The processes of this test that are making a shard."""
    return named("ShardWorker", os.getpid())


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny_models) -> dict[str, bytes]:
    """The dataset as made without Ray, in one process."""
    out = tmp_path_factory.mktemp("reference") / "out"
    make_dataset(out, tiny_models, trajectories=SHARDS, shard_size=1, rollout={"steps": 256, "batch_size": 4})
    return bytes_of(out)


def test_a_lost_node_leaves_the_rest_to_what_is_left(tmp_path, tiny_models, reference):
    out = tmp_path / "out"
    with cluster(1) as nodes:
        second = nodes.add_node(num_cpus=1)
        file = config_file(tmp_path, out, tiny_models, workers=2)
        with running("generate", file, "--address", nodes.address) as process:
            wait_for(lambda: shards_in(out) >= 2)
            nodes.remove_node(second, allow_graceful=False)
            _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    assert bytes_of(out) == reference


def test_nothing_to_run_on_is_said_and_a_signal_ends_the_wait(tmp_path, tiny_models):
    with cluster(0) as nodes:
        for number in (signal.SIGTERM, signal.SIGINT):
            file = config_file(tmp_path, tmp_path / number.name, tiny_models)
            with running("generate", file, "--address", nodes.address) as process:
                said = ""
                while "to make" not in said:  # it is connected
                    said = present(process.stderr).readline()
                connected = time.monotonic()
                while "waiting for 1 CPU: the cluster has 0 free" not in said:
                    said = present(process.stderr).readline()
                assert time.monotonic() - connected < 10
                process.send_signal(number)
                told = time.monotonic()
                _, stderr = process.communicate(timeout=60)
                assert time.monotonic() - told < 15
            assert process.returncode == 130, stderr
            assert "resume with: tsdfm-pipeline generate" in stderr.strip().splitlines()[-1]
            assert "Traceback" not in stderr


@pytest.mark.release
def test_a_worker_that_is_stopped_is_ended_and_its_shard_made_by_another(tmp_path, tiny_models, reference):
    out = tmp_path / "out"
    with cluster(1) as nodes:
        file = config_file(tmp_path, out, tiny_models)
        with running("generate", file, "--address", nodes.address, code=IMPATIENT) as process:
            wait_for(lambda: shards_in(out) >= 1 and workers())
            stopped = workers()[0]
            stopped.suspend()
            _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert "it gave no sign of life for 12 s" in stderr
    assert not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE
    assert bytes_of(out) == reference


# With a worker that stops once as it is given the shard after shard 1, before it has said that it begins.
BETWEEN = """
import os
import tsdfm.jobs.crew.tasks as tasks
import tsdfm.jobs.generate.run as run
tasks.SILENT_SECONDS = 12.0
sound, mark = run.make, os.path.abspath("stopped")
def make(order, item, given):
    if "00001-of" in item.path and not os.path.exists(mark):
        import signal
        import tsdfm.jobs.crew.working as working
        open(mark, "w").close()
        working._Heart.begins = lambda heart, key, signs: os.kill(os.getpid(), signal.SIGSTOP)
    return sound(order, item, given)
run.make = make
"""


def test_a_shard_that_ends_every_worker_is_set_aside(tmp_path, tiny_models, reference):
    out = tmp_path / "out"
    with cluster(1) as nodes:
        file = config_file(tmp_path, out, tiny_models, workers=1)
        with running("generate", file, "--address", nodes.address, code=POISONED) as process:
            _, stderr = process.communicate(timeout=300)
        assert process.returncode == 1, stderr
        last = stderr.strip().splitlines()[-1]
        assert "data/train-00001-of-00012.parquet: 3 workers died making it" in last
        assert "Traceback" not in stderr
        assert "memory" not in last
        assert shards_in(out) == SHARDS - 1
        with running("generate", file, "--address", nodes.address) as again:
            _, stderr = again.communicate(timeout=200)
    assert again.returncode == 0, stderr
    assert bytes_of(out) == reference


# With workers that die of shard 1: the function travels by value, as no module of the workers holds it.
POISONED = """
import tsdfm.jobs.generate.run as run
sound = run.make
def make(order, item, given):
    if "00001-of" in item.path:
        import os
        os._exit(1)
    return sound(order, item, given)
run.make = make
"""


def test_a_node_without_the_teacher_is_named(tmp_path, tiny_models):
    import shutil

    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_models.mask, teacher)
    with cluster(1) as nodes:
        file = config_file(tmp_path, tmp_path / "out", tiny_models, teacher=str(teacher))
        with running("generate", file, "--address", nodes.address, code=MOVED, cwd=tmp_path) as process:
            _, stderr = process.communicate(timeout=200)
    assert process.returncode == 1, stderr
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("Error: node ")
    assert f"{teacher}: no such model folder" in last
    assert "memory" not in last
    assert "Traceback" not in stderr


# A cluster whose nodes lack a folder that the driver has: it is gone once the driver has opened it.
MOVED = """
import shutil
import tsdfm.jobs.generate.run as run
collect = run.collect
def without(*arguments):
    shutil.rmtree("teacher")
    return collect(*arguments)
run.collect = without
"""


def test_a_cluster_that_starts_from_nothing_grows_and_shrinks(tmp_path, tiny_models, reference):
    out = tmp_path / "out"
    with cluster(0) as nodes:
        file = config_file(tmp_path, out, tiny_models)
        with running("generate", file, "--address", nodes.address) as process:
            said = ""
            while "waiting for 1 CPU: the cluster has 0 free" not in said:
                said = present(process.stderr).readline()
            first = nodes.add_node(num_cpus=1)
            wait_for(lambda: shards_in(out) >= 2)
            nodes.add_node(num_cpus=1)
            wait_for(lambda: len(workers()) >= 2)
            nodes.remove_node(first, allow_graceful=True)
            _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    assert bytes_of(out) == reference


@pytest.mark.parametrize("ended", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.release)], ids=["SIGKILL", "SIGSTOP"])
def test_a_head_that_is_lost_ends_the_run_in_one_line_and_another_goes_on(ended, tmp_path, tiny_models, reference):
    out = tmp_path / "out"
    file = config_file(tmp_path, out, tiny_models)
    with cluster(1) as nodes, running("generate", file, "--address", nodes.address) as process:
        wait_for(lambda: shards_in(out) >= 2)
        for each in of_nodes(nodes, "gcs_server", "raylet"):
            each.send_signal(ended)
        lost = time.monotonic()
        _, stderr = process.communicate(timeout=200)
        assert time.monotonic() - lost < 40
    assert process.returncode == 1, stderr
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("Error: the head of the Ray cluster has not answered for 2")
    assert last.endswith("finished shards are kept. When a head runs again, the same command resumes")
    assert "Traceback" not in stderr
    with cluster(1) as nodes, running("generate", file, "--address", nodes.address) as again:
        _, stderr = again.communicate(timeout=200)
    assert again.returncode == 0, stderr
    assert bytes_of(out) == reference


# With a worker that hangs over shard 1 once, and less patience than ten minutes.
HANGING = """
import os
import tsdfm.jobs.crew.signs as signs
import tsdfm.jobs.generate.run as run
signs.HANG_SECONDS, signs.HANG_TIMES = 15.0, 1
sound, mark = run.make, os.path.abspath("hung")
def make(order, item, given):
    if "00001-of" in item.path and not os.path.exists(mark):
        import time
        open(mark, "w").close()
        time.sleep(10_000)
    return sound(order, item, given)
run.make = make
"""


@pytest.mark.parametrize(("cpus", "code", "why"), [
    (1, BETWEEN, "it gave no sign of life for 12 s"), pytest.param(2, HANGING, "it took more than", marks=pytest.mark.release)], ids=["stops", "hangs"])
def test_a_worker_that_stops_between_two_shards_or_hangs_over_one_is_ended(tmp_path, tiny_models, reference, cpus, code, why):
    out = tmp_path / "out"
    with cluster(cpus) as nodes:
        file = config_file(tmp_path, out, tiny_models)
        with running("generate", file, "--address", nodes.address, code=code, cwd=tmp_path) as process:
            _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert f"is ended, and its work given to another: {why}" in stderr
    assert bytes_of(out) == reference
