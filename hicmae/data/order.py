"""In which order an epoch shows the clips of a training part, for all processes together; a function of (seed, epoch) alone.

Shuffled: every clip once. Stratified: every class alike in every batch, so that clips of rare classes come several times in an
epoch and some of the frequent ones wait for a later epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hicmae.seeding import numpy_generator

Turn = tuple[int, int]  # the number of a clip, and how often it was shown in this epoch before


def shuffled(count: int, seed: int, epoch: int) -> list[Turn]:
    """All clips in random order."""
    return [(int(number), 0) for number in numpy_generator("order", seed, epoch).permutation(count)]


def stratified(labels: Sequence[int], batch: int, steps: int, seed: int, epoch: int) -> list[Turn]:
    """Clips for `steps` batches in which the numbers of clips of any two classes differ by one at most.

    A class goes through its clips in random order and begins anew, in another order, when all were shown.
    """
    random = numpy_generator("stratified order", seed, epoch)
    classes = np.unique(np.asarray(labels))
    clips = {int(label): _endless(np.flatnonzero(np.asarray(labels) == label), random) for label in classes}
    extra: Counter[int] = Counter()
    shown: Counter[int] = Counter()
    turns = []
    for _ in range(steps):
        favoured = sorted(random.permutation(classes).tolist(), key=extra.__getitem__)[: batch % len(classes)]
        extra.update(favoured)
        chosen = [label for label in clips for _ in range(batch // len(classes))] + favoured
        for number in random.permutation([next(clips[label]) for label in chosen]).tolist():
            turns.append((number, shown[number]))
            shown[number] += 1
    return turns


def _endless(values: NDArray[np.int64], random: np.random.Generator) -> Iterator[int]:
    while True:
        yield from random.permutation(values).tolist()
