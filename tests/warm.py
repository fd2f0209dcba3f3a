"""A process that has imported all that commands need, and forks a child for each job: it starts at once, and can be killed."""

import atexit
import contextlib
import multiprocessing
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import psutil

CRASHED = 70  # exit code of a job that raised what nobody caught
BROOD_SECONDS = 40.0  # that what a job has started may outlive it


@dataclass(frozen=True)
class Job:
    """What to run: a function at the top of a module, its arguments, and the signals to send it, each so many seconds after the start."""

    work: Callable[..., object]
    arguments: tuple[Any, ...]
    signals: tuple[tuple[float, int], ...] = ()
    patience: float = 120.0


@dataclass(frozen=True)
class Start:
    """Begin a job and go on: its standard streams are written to two files, and it has the environment and the folder given."""

    job: Job
    stdout: str
    stderr: str
    environment: dict[str, str]
    folder: str


@dataclass(frozen=True)
class Ask:
    """How did the process of this number end?"""

    pid: int


@dataclass(frozen=True)
class End:
    """How a job ended: its exit code (or minus a signal), what it printed, seconds since the last signal, and processes it left behind."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    left: list[str]


def command(*arguments: str) -> None:
    """The command line, as a job."""
    from tsdfm.jobs.start import main

    sys.argv = ["tsdfm-pipeline", *arguments]
    main()


class Warm:
    """The process, seen from a test."""

    def __init__(self, *modules: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, modules))
        self._process.start()
        theirs.close()

    def run(self, job: Job) -> End:
        """Run a job to its end."""
        self._connection.send(job)
        end: End = self._connection.recv()
        return end

    def start(self, start: Start) -> int:
        """Begin a job; returns the number of its process."""
        self._connection.send(start)
        pid: int = self._connection.recv()
        return pid

    def ended(self, pid: int) -> int:
        """The exit code (or minus a signal) of a job that was begun and has ended. To be asked once."""
        self._connection.send(Ask(pid))
        code: int = self._connection.recv()
        return code

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


@contextlib.contextmanager
def warm(*modules: str) -> Iterator[Warm]:
    """A process that has imported `modules`, with one thread for arithmetic."""
    there = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    running = Warm(*modules)
    try:
        yield running
    finally:
        running.close()
        if there is None:
            del os.environ["OMP_NUM_THREADS"]


def _serve(connection: Connection, modules: tuple[str, ...]) -> None:
    for name in modules:
        import_module(name)
    with contextlib.suppress(EOFError):
        while True:
            asked = connection.recv()
            if isinstance(asked, Ask):
                connection.send(os.waitstatus_to_exitcode(os.waitpid(asked.pid, 0)[1]))
            elif isinstance(asked, Start):
                with open(asked.stdout, "wb") as stdout, open(asked.stderr, "wb") as stderr:
                    connection.send(_fork(Job(_as_told, (asked,)), stdout.fileno(), stderr.fileno(), connection))
            else:
                connection.send(_run(asked, connection))


def _as_told(start: Start) -> None:
    """A job, with the environment and the folder that it would have as a process of its own."""
    os.environ.clear()
    os.environ.update(start.environment)
    sys.path[:0] = [place for place in start.environment.get("PYTHONPATH", "").split(os.pathsep) if place]
    os.chdir(start.folder)
    start.job.work(*start.job.arguments)


def _fork(job: Job, stdout: int, stderr: int, connection: Connection) -> int:
    ready, there = os.pipe()
    child = os.fork()
    if child == 0:
        connection.close()
        _work(job, stdout, stderr, there)
    os.close(there)
    os.read(ready, 1)  # from here on it is what it would be as a process of its own
    os.close(ready)
    return child


def _run(job: Job, connection: Connection) -> End:
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        code, seconds, left = _watch(job, _fork(job, stdout.fileno(), stderr.fileno(), connection))
        for file in (stdout, stderr):
            file.seek(0)
        return End(code, stdout.read().decode(errors="replace"), stderr.read().decode(errors="replace"), seconds, left)


def _work(job: Job, stdout: int, stderr: int, ready: int) -> None:
    """The child: does the job and ends."""
    os.setsid()
    for target, source in enumerate((os.open(os.devnull, os.O_RDONLY), stdout, stderr)):
        os.dup2(source, target)
    code = 0
    os.close(ready)
    try:
        job.work(*job.arguments)
    except SystemExit as leave:
        code = int(leave.code or 0)
    except BaseException:
        traceback.print_exc()
        code = CRASHED
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _watch(job: Job, child: int) -> tuple[int, float, list[str]]:
    """Send the signals and wait: (exit code, seconds since the last signal, what was left behind)."""
    started = last = time.monotonic()
    waiting = list(job.signals)
    over = os.pidfd_open(child)  # can be read once the child has ended
    family: dict[int, psutil.Process] = {}
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            os.close(over)
            return os.waitstatus_to_exitcode(status), time.monotonic() - last, _left(family)
        now = time.monotonic()
        if waiting and now - started >= waiting[0][0]:
            family |= _children(child)
            os.kill(child, waiting.pop(0)[1])
            last = now
        elif now - last > job.patience:
            family |= _children(child)
            os.kill(child, signal.SIGKILL)
        select.select([over], [], [], max(0.0, started + waiting[0][0] - time.monotonic()) if waiting else 1.0)


def _children(pid: int) -> dict[int, psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return {each.pid: each for each in psutil.Process(pid).children(recursive=True)}
    return {}


def _left(family: dict[int, psutil.Process]) -> list[str]:
    """The names of processes that outlive their job for long; they are killed."""
    _, alive = psutil.wait_procs(list(family.values()), timeout=BROOD_SECONDS)
    names = []
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(process.name())
            process.kill()
    return names
