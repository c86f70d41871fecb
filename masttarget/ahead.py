"""Work that is done while its result is not needed yet: a generator that runs in a thread, and tasks in several."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def ahead(steps: Iterator[T]) -> Generator[T, None, None]:
    """What `steps` gives, in order; while one is used, the next is made in another thread.

    So what a step refers to has to stay as it is until the next but one is asked for. Errors come where the step would
    have come. The thread has ended when this generator is closed or at its end.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        coming = pool.submit(next, steps, None)
        while (step := coming.result()) is not None:
            coming = pool.submit(next, steps, None)
            yield step


def in_order(
    tasks: Iterable[S], work: Callable[[S], T], threads: int, under_way: int
) -> Generator[T, None, None]:
    """What `work` makes of each task, in their order; so many threads do it, so many tasks are begun and not given.

    Errors come where the result would have come. The threads have ended when this generator is closed or at its end.
    """
    coming: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        try:
            for task in tasks:
                if len(coming) == under_way:
                    yield coming.popleft().result()
                coming.append(pool.submit(work, task))
            while coming:
                yield coming.popleft().result()
        finally:
            for left in coming:
                left.cancel()
