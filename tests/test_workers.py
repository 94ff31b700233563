"""Workers: results in order, one thread an operation, errors and interruptions that leave nothing behind."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from scvi_lfm._workers import even_blocks, even_slices, in_order, meanwhile, one_ahead, with_workers, workers


@pytest.fixture(params=[1, 2, 4])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_whoever_is_first(n_threads):
    def slow_first(number: int) -> int:
        time.sleep(0.01 if number % 2 == 0 else 0)
        return number

    with workers():
        assert list(in_order(slow_first, range(20))) == list(range(20))


def test_an_operation_has_one_thread_and_the_call_as_many_workers_as_torch_had(n_threads):
    met = threading.Barrier(n_threads, timeout=30)

    def who(_: int) -> tuple[str, int]:
        met.wait()  # all of them are needed at once
        return threading.current_thread().name, torch.get_num_threads()

    with workers():
        assert torch.get_num_threads() == 1
        found = list(in_order(who, range(n_threads)))
    assert {number for _, number in found} == {1}
    assert len({name for name, _ in found}) == n_threads
    assert torch.get_num_threads() == n_threads
    counts: list[int] = []
    thread = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert counts == [n_threads], "threads begun later have the user's number"


def test_items_are_taken_a_few_at_a_time(n_threads):
    taken: list[int] = []

    def items():
        for number in range(50):
            taken.append(number)
            yield number

    with workers():
        for result in in_order(lambda number: number, items()):
            assert len(taken) <= result + 1 + n_threads + 1


@pytest.mark.parametrize("n", [0, 1, 511, 512, 1000, 1030, 5000])
@pytest.mark.parametrize("most", [1, 300, 2000])
def test_two_workers_get_as_many_rows_as_each_other(n, most):
    for device in ("cpu", "meta"):
        blocks = even_blocks(n, most, torch.device(device))
        assert [0, *(rows.stop for rows in blocks)] == [*(rows.start for rows in blocks), n]
        sizes = [rows.stop - rows.start for rows in blocks]
        assert max(sizes, default=0) <= most
        assert max(sizes, default=0) - min(sizes, default=0) <= 1
        least = -(-n // most)
        assert len(blocks) == least + (least % 2 if device == "cpu" and n >= 512 else 0)


@pytest.mark.parametrize("n", [0, 1, 16, 700, 9408, 9409])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_slices_begin_at_whole_steps(n, count):
    slices = even_slices(n, count, 16)
    assert [0, *(rows.stop for rows in slices)] == [*(rows.start for rows in slices), n]
    assert all(rows.start % 16 == 0 or rows.start == n for rows in slices)
    sizes = [rows.stop - rows.start for rows in slices]
    assert max(sizes) - min(sizes[:-1], default=max(sizes)) <= 16


def test_a_worker_is_at_one_thing_while_the_caller_goes_on(n_threads):
    begun, times = threading.Event(), []

    def slow() -> int:
        begun.set()
        times.append(1)
        return 7

    with workers():
        result = meanwhile(slow)
        assert begun.wait(30 if n_threads > 1 else 0) == (n_threads > 1)
        assert result() == result() == 7
    assert times == [1]


def test_one_item_is_taken_ahead(n_threads):
    taken: list[int] = []
    with workers():
        for result in one_ahead(lambda number: 2 * number, (taken.append(number) or number for number in range(9))):
            assert len(taken) == min(result // 2 + 2, 9)
    assert list(one_ahead(str, [])) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_a_worker_ends_the_call_and_its_threads(n_threads, error):
    def fail(number: int) -> int:
        if number == 3:
            raise error
        return number

    before = threading.active_count()
    with pytest.raises(error), workers():
        list(in_order(fail, range(1000)))
    assert threading.active_count() == before
    assert torch.get_num_threads() == n_threads


def test_results_that_nobody_wants_any_more_are_not_computed(n_threads):
    done: list[int] = []
    with workers():
        for result in in_order(lambda number: done.append(number) or number, range(1000)):
            if result == 2:
                break
    assert len(done) < 20


def test_workers_do_not_nest(n_threads):
    @with_workers
    def inner(number: int) -> float:
        return sum(in_order(float, range(number)))

    with workers():
        assert inner(5) == 10
        assert torch.get_num_threads() == 1
        assert list(in_order(inner, [3, 4])) == [3, 6]
    assert torch.get_num_threads() == n_threads


def test_sums_in_order_are_the_same_for_any_number_of_threads():
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 1000)).astype(np.float32))
    before, sums = torch.get_num_threads(), []
    for n in (1, 2, 4):
        torch.set_num_threads(n)
        try:
            with workers():
                total = torch.zeros(1000)
                for part in in_order(lambda row: torch.exp(values[row]), range(64)):
                    total += part
        finally:
            torch.set_num_threads(before)
        sums.append(total)
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


@pytest.mark.parametrize(
    ("device", "available", "expected"),
    [("cpu", True, 1), ("auto", True, 2), ("auto", False, 1), ("cuda:1", True, 2), (None, True, 2), (5, False, 1)],
)
def test_a_gpu_has_no_workers_beside_it(monkeypatch, device, available, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)

    @with_workers
    def threads_of_an_operation(device: object = "auto") -> int:
        return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = threads_of_an_operation() if device is None else threads_of_an_operation(device=device)
    finally:
        torch.set_num_threads(before)
    assert found == expected
