"""The command line in processes of their own, which can be watched, signalled and killed; they start at once (see `warm`)."""

import atexit
import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from tests.warm import Job, Start, Warm, command, warm

MODULES = ("tsdfm.jobs.start", "tsdfm.jobs.cli", "tsdfm.jobs.generate.run", "tsdfm.jobs.distill.run", "tsdfm.jobs.train.run",
           "tsdfm.jobs.evaluate.run", "tsdfm.jobs.ablate.run", "tsdfm.jobs.crew.training.group", "torch._dynamo")
POLL_SECONDS = 0.01
_FIRST = dict(os.environ)  # the environment, before any test has changed it
_shared: list[Warm] = []  # of this process of tests: one, from the first command on, until it ends
_kept = contextlib.ExitStack()
atexit.register(_kept.close)


class Output:
    """What a command writes to one of its standard streams, while it does."""

    def __init__(self, process: "Running", file: IO[str]) -> None:
        self._process, self._file = process, file

    def readline(self) -> str:
        """The next line, as soon as it is there; '' at the end."""
        line = ""
        while not line.endswith("\n"):
            over = self._process.poll() is not None
            line += self._file.readline()
            if over and not line.endswith("\n"):
                break
            if not line.endswith("\n"):
                time.sleep(POLL_SECONDS)
        return line

    def read(self) -> str:
        """All that is there and was not read."""
        return self._file.read()


class Running:
    """A command that was begun; it is used as a `subprocess.Popen` is, in a session of its own."""

    def __init__(self, mother: Warm, job: Job, folder: Path, stdout: IO[str], stderr: IO[str]) -> None:
        self.stdout, self.stderr = Output(self, stdout), Output(self, stderr)
        self.returncode: int | None = None
        self._mother = mother
        self.pid = mother.start(Start(job, stdout.name, stderr.name, dict(os.environ), str(folder)))
        self._watched = os.pidfd_open(self.pid)  # can be read once the process has ended

    def poll(self, seconds: float = 0.0) -> int | None:
        """Its exit code, or minus a signal; None if it runs, also after so many seconds."""
        if self.returncode is None and select.select([self._watched], [], [], seconds)[0]:
            self.returncode = self._mother.ended(self.pid)
            os.close(self._watched)
        return self.returncode

    def wait(self, timeout: float = 300.0) -> int:
        """Its exit code, once it has ended. Raises subprocess.TimeoutExpired."""
        code = self.poll(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}: {self.stderr.read()}", timeout)
        return code

    def communicate(self, timeout: float = 300.0) -> tuple[str, str]:
        """What it has written and nobody has read yet, once it has ended. Raises subprocess.TimeoutExpired."""
        self.wait(timeout)
        return self.stdout.read(), self.stderr.read()

    def send_signal(self, number: int) -> None:
        """A signal to the process alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to the process alone."""
        self.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def running(*arguments: object, code: str = "", cwd: Path | None = None, mother: Warm | None = None) -> Iterator[Running]:
    """The command line in a session of its own; nothing of it outlives the block.

    `code` is run first, say to have less patience than the command has. `mother` is of what the process is a fork, if not of the
    one that all tests share.
    """
    if mother is None and not _shared:
        with pytest.MonkeyPatch.context() as patch:  # libraries read some of it as they are imported
            for name in os.environ:
                patch.delenv(name)
            for name, value in _FIRST.items():
                patch.setenv(name, value)
            _shared.append(_kept.enter_context(warm(*MODULES)))
    job = Job(_patched, (code, *map(str, arguments))) if code else Job(command, tuple(map(str, arguments)))
    with tempfile.NamedTemporaryFile("r", errors="replace") as stdout, tempfile.NamedTemporaryFile("r", errors="replace") as stderr:
        process = Running(mother or _shared[0], job, cwd or Path.cwd(), stdout, stderr)
        try:
            yield process
        finally:
            end([*family(process.pid), psutil.Process(process.pid)] if process.poll() is None else [])
            process.wait()


def wait_for(condition: Callable[[], object], process: Running | None = None, seconds: float = 200.0) -> None:
    """Wait until the condition holds. A test fails if it never does, or if the process, where one is given, has ended first."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def _patched(code: str, *arguments: str) -> None:
    exec(compile(code, "<patched>", "exec"), {"__name__": "__main__"})  # what it defines travels by value, as of a script
    command(*arguments)


def family(pid: int) -> list[psutil.Process]:
    """The processes that a process has started, and theirs."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def named(name: str, pid: int) -> list[psutil.Process]:
    """Those of them that have a name: 'ShardWorker', 'RayTrainWorker'."""
    found = []
    for process in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found


def end(processes: list[psutil.Process]) -> None:
    """Kill them."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
