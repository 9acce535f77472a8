"""Work ahead in threads: results in order, never further ahead than agreed, nothing left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from facerec.threads import cores, ordered_map


@pytest.mark.parametrize(("workers", "ahead"), [(1, 0), (1, 5), (4, None), (7, 100), (None, None)])
def test_results_come_in_the_order_of_the_tasks(workers: int | None, ahead: int | None) -> None:
    def work(number: int) -> int:
        time.sleep(0.001 * (number % 3))
        return number * number

    assert list(ordered_map(work, range(40), workers, ahead=ahead)) == [number**2 for number in range(40)]


def test_tasks_are_read_no_further_ahead_than_asked_for() -> None:
    read: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    results = ordered_map(int, tasks(), 2, ahead=5)
    for result in range(10):
        assert next(results) == result and len(read) == result + 6
    results.close()
    assert len(read) == 15


def test_an_error_comes_where_its_result_would_and_leaves_no_thread() -> None:
    results = ordered_map(lambda number: 1 // (3 - number), range(100), 3, name="in-order-test")
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("in-order-test")]


def test_cores_are_one_or_more() -> None:
    assert cores() >= 1
