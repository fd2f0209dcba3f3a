"""A Ray cluster of one node on this machine, for commands that are given its address: to start one takes longer than most of them."""

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.commands import end, family, named

START_SECONDS = 120


@dataclass(frozen=True)
class Head:
    """A running cluster.

    Args:
        address: for `--address`.
        pid: of the process whose children all of it is.
    """

    address: str
    pid: int

    def workers(self, name: str = "ShardWorker") -> list[psutil.Process]:
        """Its processes that have a name; that of those that make a shard, say."""
        return named(name, self.pid)


@contextlib.contextmanager
def ray_head(cpus: int) -> Iterator[Head]:
    """A cluster of so many CPUs. Its workers have the environment variables of the moment in which this is entered."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # a short path: sockets below it allow 107 bytes
    log = Path(folder) / "head.log"
    ray = Path(sys.executable).with_name("ray")
    with log.open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        process = subprocess.Popen([ray, "start", "--head", "--port=0", f"--num-cpus={cpus}", "--include-dashboard=false", "--block",
                                    f"--temp-dir={folder}"], stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            deadline, found = time.monotonic() + START_SECONDS, None
            while found is None:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
                found = re.search(r"--address='([^']+)'", log.read_text())
            for watching in named("log_monitor.py", process.pid):
                watching.suspend()  # it looks at every worker's log again and again, and nobody reads them
            yield Head(found[1], process.pid)
        finally:
            end([*family(process.pid), psutil.Process(process.pid)])
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)
