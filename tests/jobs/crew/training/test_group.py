"""What is left of a training group when its block is left."""

import threading
import time

import pytest
import ray

import tsdfm.jobs.crew.training.group as group
from tsdfm.schemas.base import WorkError


def fails_beside(thread: threading.Thread) -> None:
    with group._ended() as threads:
        threads.append(thread)
        thread.start()
        raise WorkError("the loss is nan")


@pytest.mark.parametrize(("seconds", "running", "asked"), [(0.2, False, []), (1e3, False, ["Ray Train"]), (1e3, True, [])])
def test_no_thread_that_uses_ray_is_alive_when_python_ends(monkeypatch, seconds, running, asked):
    """It is waited for; else the process leaves at once, but not where Ray is somebody else's and goes on."""
    asks: list[str] = []
    over = threading.Event()
    monkeypatch.setattr(group, "END_SECONDS", 0.5)
    monkeypatch.setattr(group, "leave_at_once", asks.append)
    monkeypatch.setattr(ray, "is_initialized", lambda: running)
    began = time.monotonic()
    thread = threading.Thread(target=over.wait, args=(seconds,), daemon=True)
    with pytest.raises(WorkError):
        fails_beside(thread)
    assert asks == asked
    assert thread.is_alive() == (seconds > 1)
    assert time.monotonic() - began > min(seconds, 0.5) / 2
    over.set()
