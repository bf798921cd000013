"""Looking at many small files: in one thread, or in several where files keep one waiting.

for digest in mapped(known_digest, paths): ...
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

TRIED = 50  # items that show whether it waits
THREADS = 8


def mapped(one: Callable[[A], B], items: Sequence[A]) -> Iterator[B]:
    """`one` of every item, in order: in this thread, or in several when it waited more than it worked for the first items.

    It waits on network file systems. On a local disk threads would only take the interpreter from each other, a third more
    time for thousands of runs.
    """
    first: list[B] = []
    waits = _waits(one, items, first)
    yield from first
    if not waits:
        yield from map(one, islice(items, len(first), None))
        return
    starts = range(len(first), len(items), TRIED)
    with ThreadPoolExecutor(THREADS) as pool:
        yield from chain.from_iterable(pool.map(lambda start: list(map(one, items[start : start + TRIED])), starts))


def _waits(one: Callable[[A], B], items: Sequence[A], done: list[B]) -> bool:
    """Do the first items; whether most of the time went by without work."""
    wall_s, worked_s = time.perf_counter(), time.thread_time()
    done.extend(map(one, items[:TRIED]))
    return time.perf_counter() - wall_s > 2 * (time.thread_time() - worked_s)
