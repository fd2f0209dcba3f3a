"""What is left of a training group when its block is left."""

import threading
import time

import pytest

import tsdfm.jobs.crew.training.group as group
from tsdfm.schemas.base import WorkError


@pytest.mark.parametrize(("seconds", "running", "asked"), [(0.2, False, []), (1e3, False, ["Ray Train"]), (1e3, True, [])])
def test_no_thread_that_uses_ray_is_alive_when_python_ends(monkeypatch, seconds, running, asked):
    """It is waited for; else the process leaves at once, but not where Ray is somebody else's and goes on."""
    asks: list[str] = []
    over = threading.Event()
    monkeypatch.setattr(group, "END_SECONDS", 0.5)
    monkeypatch.setattr(group, "leave_at_once", asks.append)
    monkeypatch.setattr(group.ray, "is_initialized", lambda: running)
    began = time.monotonic()
    with pytest.raises(WorkError), group._ended() as threads:
        threads.append(threading.Thread(target=over.wait, args=(seconds,), daemon=True))
        threads[0].start()
        raise WorkError("the loss is nan")
    assert asks == asked
    assert threads[0].is_alive() == (seconds > 1)
    assert time.monotonic() - began > min(seconds, 0.5) / 2
    over.set()
