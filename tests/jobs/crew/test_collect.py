"""How pieces of work are handed out and waited for, with a crew that is no Ray: who dies, who is slow, and when there is nobody."""

import os
import re
import signal
import time
from collections.abc import Callable

import pytest

from tsdfm.jobs.crew import collect as collecting
from tsdfm.jobs.crew.collect import Told, nothing
from tsdfm.jobs.crew.pieces import NODES, Death, Pieces
from tsdfm.jobs.crew.signs import HANG_SECONDS, Pace, Sign, Signs, Watch, birth, end_process
from tsdfm.jobs.shell.interrupts import Interrupted
from tsdfm.schemas.base import WorkError

TOLD = Told("making shards", "shard", lambda index: f"data/train-{index:05d}-of-00006.parquet", cure="lower rollout.batch_size")


def collect(crew: "Crew", check: Callable[[], None] = nothing) -> dict[int, str]:
    """Have six pieces done. Returns what was made of each."""
    made: dict[int, str] = {}
    collecting.collect(crew, TOLD, range(6), made.__setitem__, check)
    return made


class Crew:
    """Makes shards at once, but for those that are told to end otherwise."""

    def __init__(self, ends: dict[int, list[Death]] | None = None, places: int = 2) -> None:
        self.ends, self.places = ends or {}, places
        self.waiting: list[int] = []
        self.handed: list[int] = []

    def __len__(self) -> int:
        return len(self.waiting)

    @property
    def at_work(self) -> int:
        return min(len(self.waiting), self.places)

    def most(self) -> int:
        return 2

    def hand_over(self, index: int) -> None:
        self.waiting.append(index)
        self.handed.append(index)

    def call_off(self) -> None:
        self.waiting = self.waiting[: self.places]

    def waits_for(self, seconds: float) -> str:
        return "waiting for 1 CPU: the cluster has 0 free"

    def settled(self, seconds: float) -> list[tuple[int, str | Death | None]]:
        if not self.places:
            time.sleep(seconds)
            return []
        index = self.waiting.pop(0)
        if self.ends.get(index):
            return [(index, self.ends[index].pop(0))]
        return [(index, f"made {index}")]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(collecting, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(collecting, "IDLE_SECONDS", 0.1)


class Unseen(Crew):
    """Pieces that are done before anybody has seen a worker at one."""

    at_work = 0

    def most(self) -> int:
        return 6

    def settled(self, seconds: float) -> list[tuple[int, str | Death | None]]:
        time.sleep(0.3)
        return [(self.waiting.pop(0), "made") for _ in range(len(self.waiting))]


def test_pieces_quicker_than_their_signs_have_a_rate_that_can_be(capsys):
    collect(Unseen())
    [line] = [line for line in capsys.readouterr().err.splitlines() if "6/6" in line]
    found = re.search(r"6/6  ([\d,.]+) shards/(s|min)", line)
    assert found, line
    assert float(found[1].replace(",", "")) / {"s": 1, "min": 60}[found[2]] <= 6 / 0.3


def test_all_are_made_whatever_dies_once_or_twice():
    crew = Crew({0: [Death("a", "died")] * 2, 3: [Death("b", "the node was lost", node_lost=True)] * (NODES - 1)})
    assert collect(crew) == {index: f"made {index}" for index in range(6)}


@pytest.mark.parametrize(("memory", "words"), [(False, "run the same command"), (True, "lower rollout.batch_size")])
def test_a_shard_that_ends_three_workers_is_named_and_all_else_made(memory, words):
    crew = Crew({1: [Death("node a", "x"), Death("node b", "x"), Death("node a", "its process ended", memory=memory)]})
    with pytest.raises(WorkError, match=r"data/train-00001-of-00006.parquet: 3 workers died making it, on node a, node b; the last: "
                                        rf"its process ended\. It is set aside, and all else is finished and kept; {words}"):
        collect(crew)
    assert sorted(crew.handed) == [0, 1, 1, 1, 2, 3, 4, 5]


def test_nodes_that_are_lost_again_and_again_over_one_shard_end_it():
    queue = Pieces([7])
    for _ in range(NODES):
        assert queue.take() == 7
        queue.died(7, Death("a", "the node was lost", node_lost=True))
    assert queue.take() is None
    assert list(queue.aside) == [7]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_where_nobody_works_it_is_said_and_one_signal_ends_it(capsys, number):
    class Nobody(Crew):
        def waits_for(self, seconds: float) -> str:
            os.kill(os.getpid(), number)
            return super().waits_for(seconds)

    began = time.monotonic()
    with pytest.raises(Interrupted, match="stopped after 0 shards, all kept; resume with: tsdfm-pipeline"):
        collect(Nobody(places=0))
    assert time.monotonic() - began < 3
    assert "making shards: 0/6  waiting for 1 CPU: the cluster has 0 free" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "finished"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_shards_in_hand_are_waited_for_but_not_for_long_where_no_person_asks(monkeypatch, number, finished):
    class Slow(Crew):
        def settled(self, seconds: float) -> list[tuple[int, str | Death | None]]:
            if self.handed == [0, 1]:
                self.handed.append(-1)
                self.until = time.monotonic() + 0.5
                os.kill(os.getpid(), number)
            time.sleep(0.02)
            return super().settled(seconds) if time.monotonic() > self.until else []

    monkeypatch.setattr(collecting, "TERM_SECONDS", 0.1)
    with pytest.raises(Interrupted, match=f"stopped after {'2 shards' if finished else '0 shards'}, all kept"):
        collect(Slow())


def test_a_dataset_that_is_anothers_now_is_left_at_once():
    def taken() -> None:
        raise WorkError("taken")

    crew = Crew()
    with pytest.raises(WorkError, match="taken"):
        collect(crew, taken)
    assert crew.handed == []


def test_who_gives_no_sign_is_silent_and_who_does_is_not():
    watch, (a, b, c) = Watch(), [("node", pid, "0") for pid in (1, 2, 3)]
    assert watch.silent({a: 0, b: 0}, 0.0, 10) == []
    assert watch.silent({a: 1, b: 0}, 9.0, 10) == []
    assert watch.silent({a: 1, b: 0, c: 0}, 12.0, 10) == [b]
    assert watch.silent({a: 1}, 19.0, 10) == [a]


def test_the_last_sign_of_every_process_is_known_until_it_is_gone():
    signs = Signs()
    first, idle, other = Sign("here", "id", 1, "0", 3, "0/1"), Sign("here", "id", 1, "0", 4), Sign("here", "id", 2, "0", 9, "1/2")
    for sign in (first, other, idle):
        signs.beat(sign)
    assert signs.last([]) == [idle, other]
    assert signs.last([idle.process]) == [other]


def test_only_the_very_process_is_ended():
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    assert not end_process(pid, "another birth")
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGSTOP)
    assert end_process(pid, birth(pid))
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert not end_process(pid, "0")
    assert birth(pid) == ""


def test_who_is_asked_to_stop_and_does_leaves_the_rest_for_the_next_run(monkeypatch):
    asked: list[bool] = []

    class Stopping(Crew):
        def settled(self, seconds: float) -> list[tuple[int, str | Death | None]]:
            os.kill(os.getpid(), signal.SIGINT) if not asked else None
            index = self.waiting.pop(0)
            return [(index, None if asked else "made")]

    monkeypatch.setattr(f"{__name__}.TOLD", Told("training", "trial", str, stop=lambda: asked.append(True)))
    with pytest.raises(Interrupted, match="stopped after 1 trial, all kept"):
        collect(Stopping())
    assert asked


def test_a_piece_that_takes_far_longer_than_others_hangs():
    pace = Pace()
    for seconds in (1.0, 100.0):
        pace.took(seconds)
    assert pace.limit() is None
    pace.took(1.0)
    assert pace.limit() == 1000.0
    quick = Pace()
    for _ in range(5):
        quick.took(2.0)
    assert quick.limit() == HANG_SECONDS
