"""Files worked on by threads: order, bounds, and errors in their turn."""

import threading
import time

import pytest

from tsdfm.pipeline.storage.in_order import in_order


def test_results_come_in_order_however_long_each_takes():
    def slow(number):
        time.sleep(0.002 * (number % 5))
        return number * number

    assert list(in_order(slow, range(40))) == [number * number for number in range(40)]
    assert list(in_order(slow, [])) == []


def test_several_are_at_work_at_a_time_and_no_more_are_begun_than_can_wait():
    together = threading.Barrier(4, timeout=20)  # passed only if four threads stand there at once
    begun = []

    def work(number):
        begun.append(number)
        if number < 4:
            together.wait()
        return number

    results = in_order(work, range(100), threads=4)
    assert next(results) == 0
    time.sleep(0.05)
    assert len(begun) <= 8
    assert list(results) == list(range(1, 100))


def test_an_error_comes_in_its_turn_and_ends_the_work():
    begun = []

    def work(number):
        begun.append(number)
        if number == 3:
            raise ValueError("three")
        return number

    results = in_order(work, range(1000), threads=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(begun) < 20
