"""Reach a Ray cluster, or start one on this machine, with its failures told in one line."""

import atexit
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import ceil
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import psutil
import ray
import torch
from ray._private import utils
from ray.job_config import JobConfig

from tsdfm.jobs.shell.console import say
from tsdfm.jobs.shell.leaving import leave_at_once
from tsdfm.schemas.base import InputError, WorkError, first_line

CONNECT_SECONDS = 5.0
STARTS = 3  # how often Ray on this machine is started, if need be: half a minute, its own limit, is little for a busy one
END_SECONDS = 2.0  # for a thread in Ray's core to find out that it is over, or for a process to be gone
GLANCE_SECONDS = 0.002  # for which SIGTERM may be as Ray's core leaves it
LET_GO_SECONDS = 8.0  # for Ray to disconnect: it would wait for ever where the cluster's head is stopped
SHORT = "/tmp"  # stands for the usual folder of temporary files where that has too long a name
_SOCKET = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store_00"  # below that folder, as Ray names it
_SOCKET_BYTES = 107  # that the name of a socket may have
_users: list[threading.Thread] = []  # of Ray, beside the main thread
OBJECT_STORE_BYTES = 128 << 20  # only receipts travel
_NOT_FOUND = "start one with 'ray start --head', or leave out --address to run on this machine"


@contextmanager
def cluster(address: str, cpus: int | None) -> Iterator[None]:
    """Ray for the time of a job; where it runs in this process already, it is used as it is and left running.

    Args:
        address: 'local' (a fresh cluster of `cpus` cores), 'auto', 'host:port' or 'ray://host:port'.
        cpus: of a fresh cluster.

    Raises InputError if nobody listens there, WorkError if Ray can't start.
    """
    if ray.is_initialized():
        yield
        return
    with _short_folder() as folder:
        with _nothing_left_behind(), _handlers_kept():
            _connect(address, cpus, folder)
        try:
            yield
        finally:
            _let_go()


@contextmanager
def _nothing_left_behind() -> Iterator[None]:
    """End what was started in the block if it is interrupted: Ray itself does not know of what it has half started."""
    before = psutil.Process().children(recursive=True)
    try:
        yield
    except KeyboardInterrupt:
        leave_at_once("Ray")  # its own last act would wait for what is gone
        started = [process for process in psutil.Process().children(recursive=True) if process not in before]
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(started, END_SECONDS)
        raise


def _let_go() -> None:
    """Disconnect from Ray, and end what of it was started here; where its head does not answer, only for a while."""
    letting_go = threading.Thread(target=ray.shutdown, daemon=True)
    letting_go.start()
    waited = time.monotonic() + LET_GO_SECONDS
    while letting_go.is_alive() and time.monotonic() < waited:
        letting_go.join(GLANCE_SECONDS)
        _give_back(signal.getsignal(signal.SIGTERM))
    _give_back(signal.getsignal(signal.SIGTERM))
    if letting_go.is_alive():
        atexit.unregister(ray.shutdown)
        leave_at_once("Ray")
    while _users:
        thread = _users.pop()
        thread.join(END_SECONDS)
        if thread.is_alive():
            leave_at_once("a thread in Ray's core")


def _give_back(handler: Callable[[int, FrameType | None], object] | int | None) -> None:
    """Give SIGTERM its handler, which Ray takes away: as its core ends, it leaves the default, which ends a process unheard.

    None, one that was not set by Python, can't be given back.
    """
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def awaited_at_end(thread: threading.Thread) -> None:
    """Have a thread that waits for Ray ended when the process ends, under which Python's own end may crash.

    It is waited for once Ray is let go of; if it is alive even then, the process leaves at once when the command is over.
    """
    _users.append(thread)


@contextmanager
def _short_folder() -> Iterator[str | None]:
    """A folder for a fresh Ray where its own choice is too long a name for its sockets; None where it is not."""
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or SHORT
    if len(f"{usual}/{_SOCKET}") < _SOCKET_BYTES:
        yield None
        return
    try:
        folder = tempfile.mkdtemp(prefix="ray", dir=SHORT)
    except OSError as error:
        raise InputError(f"TMPDIR {usual}: too long a name for Ray's sockets, and {SHORT} can't be written ({error.strerror}); "
                         "set TMPDIR to a folder of fewer than 40 characters") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces by one that leaves at once, whatever is half started.

    Its core takes the signal away, too; so where it would set its own handler, ours is set again. In the third of a second for
    which that core starts, holding Python's lock, nothing can be set: a SIGTERM that comes then is heeded all the same, but the
    core writes some lines on it to standard error before ours.
    """
    kept, theirs = signal.getsignal(signal.SIGTERM), getattr(utils, "set_sigterm_handler", None)
    utils.set_sigterm_handler = lambda handler: _give_back(signal.getsignal(signal.SIGTERM))
    try:
        yield
    except SystemExit:  # which that handler has raised, if a version of Ray sets it otherwise
        raise KeyboardInterrupt from None
    finally:
        utils.set_sigterm_handler = theirs
        _give_back(kept)


def cores_here(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPU cores that this process may use: those it is bound to, or fewer where a container's quota (cgroup) says so."""
    return max(1, min([len(os.sched_getaffinity(0)), *_quotas(cgroup)]))


def _quotas(cgroup: Path) -> list[int]:
    """Cores that the quota allows, by the files of either version of cgroups; none where there is no quota."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = map(int, (cgroup / "cpu.max").read_text().split())  # 'max 100000' where there is none
        return [ceil(quota / period)]
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (int((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return [ceil(quota / period)] if quota > 0 else []
    return []


def gpus_at(address: str) -> int:
    """GPUs that workers may use: this machine's, or those of the cluster that Ray is connected to."""
    if address == "local" and not ray.is_initialized():
        return torch.cuda.device_count()
    return int(ray.cluster_resources().get("GPU", 0))


def _connect(address: str, cpus: int | None, folder: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        # Ray turns token mode on for a cluster it starts, unless RAY_AUTH_MODE says otherwise. With a token of this process
        # in the environment no other user of the machine gets in, and no token file is written to HOME.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        options = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES,
                   **({} if folder is None else {"_temp_dir": folder})}
    else:
        _check_listening(address)
        options = {}
    starts = STARTS if address == "local" else 1
    for start in range(1, starts + 1):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, job_config=_JobConfig(), **options)
            return
        except ConnectionError:
            raise InputError(f"--address {address}: no Ray cluster found; {_NOT_FOUND}") from None
        except Exception as error:
            ray.shutdown()  # what of it was started
            where = "on this machine" if address == "local" else f"at --address {address}"
            if isinstance(error, TypeError | ValueError):  # of what it was given: no time mends that
                raise WorkError(f"Ray can't start {where} ({first_line(error)}); mend what that names, the environment of this "
                                "process say") from None
            if start == starts:
                raise WorkError(f"Ray did not start {where} ({first_line(error)}); try again when it is less busy") from None
            say(f"Ray did not start {where}, which may be busy; trying again")


class _Unchanged(list[str]):
    """A list that `extend` leaves as it is."""

    def extend(self, values: object) -> None:
        """Nothing is added."""


class _JobConfig(JobConfig):  # type: ignore[misc]
    """A job whose workers import nothing from where the user happens to stand.

    Ray puts the driver's working directory and script folder on its workers' path, so a `datasets.py` lying there would be run
    in place of the library.
    """

    def __init__(self) -> None:
        super().__init__()
        self._py_driver_sys_path = _Unchanged()


def _check_listening(address: str) -> None:
    """Ray takes a minute and many lines to say that nobody listens; ask first."""
    if address == "auto":
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port or parts.scheme not in ("", "ray"):
        raise InputError(f"--address {address}: not a Ray address; give 'local', 'auto', 'host:port' or 'ray://host:port'")
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise InputError(f"--address {address}: nobody listens there ({error.strerror or error}); {_NOT_FOUND}") from None
