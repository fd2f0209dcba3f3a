"""SIGKILL of drivers and workers of real Ray runs, at random times: the same command goes on to the same bytes.

One cluster serves all runs, as a cluster does: a killed driver's workers are gone with it.
"""

import contextlib
import random
import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
import yaml

from tests.heads import Head
from tests.support import make_dataset, tiny_config, tree
from tests.warm import End, Job, Warm, command, warm

KILLS = 20
CHANGES = {"trajectories": 16, "shard_size": 1, "rollout": {"steps": 256, "batch_size": 4}}


@pytest.fixture(scope="module")
def mother() -> Iterator[Warm]:
    with warm("tsdfm.jobs.generate.run", "tests.warm") as running:
        yield running


def run_and_kill_a_worker(mother: Warm, job: Job, head: Head, after: float) -> tuple[End, bool]:
    """A run, one of whose workers is killed some time after there are any. Returns how it ended, and whether one was killed."""
    killed = threading.Event()

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not (found := head.workers()) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(after)
        for victim in found[:1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
                killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    end = mother.run(job)
    thread.join()
    return end, killed.is_set()


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(600)
def test_killed_drivers_and_workers_leave_no_trace(head, mother, tmp_path, tiny_models):
    make_dataset(tmp_path / "whole", tiny_models, **CHANGES)
    wanted, rng, done, number = tree(tmp_path / "whole"), random.Random(20), 0, 0
    while done < KILLS:
        number += 1
        out, config = tmp_path / f"out{number}", tmp_path / f"config{number}.yaml"
        config.write_text(yaml.safe_dump(tiny_config(out, tiny_models) | CHANGES | {"workers": 2, "address": head.address}))
        told: list[str] = []
        for _ in range(4):  # drivers, then one worker; the run whose worker dies goes on by itself
            after = rng.uniform(0.2, 6.0)
            end = mother.run(Job(command, ("generate", str(config)), ((after, signal.SIGKILL),)))
            told.append(f"driver after {after:.2f} s: {end.code}")
            assert end.code in (0, -signal.SIGKILL), (told, end.stderr)
            done += end.code != 0
        end, killed = run_and_kill_a_worker(mother, Job(command, ("generate", str(config))), head, rng.uniform(0.0, 1.0))
        done += killed
        told.append(f"worker: {killed}, {end.code}")
        assert end.code == 0, (told, end.stderr)
        assert tree(out) == wanted, told
        print(*told, sep="; ")
