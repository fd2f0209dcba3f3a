"""Threads that compute alone: order, errors, the settings of the process, and log-probabilities that no number of threads moves."""

import itertools
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tsdfm.kernels import alone as module
from tsdfm.kernels.alone import each_alone
from tsdfm.kernels.linear_buckets import SHARE_ROWS, linear_buckets
from tsdfm.kernels.linear_logprob import linear_logprob


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def settings_of(_):
    return torch.get_num_threads(), torch.is_grad_enabled()


def test_parts_come_back_in_order_each_computed_with_one_thread_and_no_gradient():
    assert each_alone(lambda part: (part, *settings_of(part)), range(5)) == [(part, 1, False) for part in range(5)]
    assert each_alone(settings_of, []) == []
    assert each_alone(settings_of, [0]) == [(2, False)]  # one part has all threads


def test_the_process_keeps_its_number_of_threads():
    each_alone(settings_of, range(4))
    assert torch.get_num_threads() == 2
    assert torch.is_grad_enabled()
    with ThreadPoolExecutor(1) as anew:  # and threads to come have it
        assert anew.submit(torch.get_num_threads).result() == 2


def test_all_threads_have_begun_when_the_parts_are_done(monkeypatch):
    """Also those for which no part was left: one that began later would change settings of the process behind its caller's back."""
    numbers, begun, usual = itertools.count(), list[int](), module._alone

    def slowly():
        number = next(numbers)
        time.sleep(0.3 * number)
        usual()
        begun.append(number)

    module._pool.cache_clear()
    monkeypatch.setattr(module, "_alone", slowly)
    try:
        assert each_alone(lambda part: part, range(4)) == [0, 1, 2, 3]
        assert begun == [0, 1]
    finally:
        module._pool.cache_clear()  # no other test has that pool


def test_an_error_of_a_part_is_that_of_the_call():
    with pytest.raises(ZeroDivisionError):
        each_alone(lambda part: 1 / part, [1, 0, 2])


def forked(pipe):
    pipe.send(each_alone(lambda part: part + 1, range(3)))


def test_a_process_that_is_forked_while_threads_begin_has_a_lock_of_its_own():
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    with module._SETTING:
        process = context.Process(target=forked, args=(theirs,), daemon=True)
        process.start()
    try:
        assert mine.poll(30)
        assert mine.recv() == [1, 2, 3]
    finally:
        process.kill()


def test_a_forked_process_has_threads_of_its_own():
    each_alone(settings_of, range(4))
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=forked, args=(theirs,), daemon=True)
    process.start()
    assert mine.poll(30)
    assert mine.recv() == [1, 2, 3]
    process.join()


@pytest.mark.parametrize("rows", [1, 2 * SHARE_ROWS - 1, 2 * SHARE_ROWS, 2 * SHARE_ROWS + 77, 1300])
def test_log_probabilities_and_gradients_at_two_threads_are_those_at_one(rows):
    g = torch.Generator().manual_seed(rows)
    hidden, weight = torch.randn(rows, 16, generator=g), torch.randn(1501, 16, generator=g)
    bias, target = torch.randn(1501, generator=g), torch.randint(1501, (rows,), generator=g)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        inputs = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
        out = linear_logprob(*inputs, target)
        found.append((out.detach(), *torch.autograd.grad(out.sum(), inputs)))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)


def test_two_threads_under_inference_mode_and_in_other_dtypes():
    hidden, weight, ids = torch.randn(300, 16), torch.randn(50, 16), torch.randint(50, (300, 3))
    with torch.inference_mode():
        inside = linear_buckets(hidden, weight, None, ids)
    outside = linear_buckets(hidden.double(), weight.double(), None, ids)
    torch.testing.assert_close(inside.rest, outside.rest, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inside.chosen.double(), outside.chosen, rtol=1e-4, atol=1e-5)
    assert linear_logprob(hidden.bfloat16(), weight.bfloat16(), None, ids[:, 0]).dtype == torch.float32
