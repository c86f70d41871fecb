"""Work that is done while its result is not needed yet: a generator that runs in a thread, one step ahead."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

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
