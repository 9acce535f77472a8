"""Work done ahead in threads and handed on in order; how many threads a process may use."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def ordered_map(
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int | None = None,
    *,
    ahead: int | None = None,
    name: str = "facerec",
) -> Generator[Result, None, None]:
    """Yield ``work(task)`` of each task, in the order of the tasks, computed by several threads.

    An error is raised where its result would come; tasks not begun by then, or when the generator is closed,
    are dropped.

    Args:
        work: called in a thread.
        tasks: read in the caller's thread, no further ahead than needed.
        workers: threads; default: one per core, eight at most.
        ahead: tasks begun before the first result is asked for; default: four per thread.
        name: of the threads.
    """
    workers = workers or min(8, cores())
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, name)
    try:
        for task in tasks:
            waiting.append(pool.submit(work, task))
            if len(waiting) > (4 * workers if ahead is None else ahead):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """CPU cores that this rank may use: its part of the machine's, where torchrun started several."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
