"""The only place where random state is derived, set and restored.

Every random choice of the project comes from a generator that is named by what it is for: `torch_generator(seed, "mask", step)`.
Equal names give equal streams on every machine, in every process and after every resume, so no random state has to be stored:
a checkpoint's position (epoch and step) stands for all of it.
"""

from __future__ import annotations

import hashlib
import operator
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive(*parts: int | str) -> int:
    """A 63-bit seed from the parts; `derive(1, 23)` and `derive(12, 3)`, `derive(1)` and `derive("1")` differ."""
    plain = tuple(part if isinstance(part, str) else operator.index(part) for part in parts)  # numpy's 3 is 3
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """A numpy generator of its own stream, named by the parts."""
    import numpy as np

    return np.random.default_rng(derive(*parts))


def torch_generator(*parts: int | str) -> torch.Generator:
    """A CPU torch generator of its own stream, named by the parts."""
    import torch

    return torch.Generator().manual_seed(derive(*parts))


def seed_globals(*parts: int | str) -> None:
    """Set the global state of random, numpy and torch: for initial weights and for libraries that take no generator."""
    import numpy as np
    import torch

    seed = derive(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - timm draws from numpy's global state
    torch.manual_seed(seed)


@contextmanager
def seeded_draws(*parts: int | str) -> Iterator[None]:
    """`seeded` for what draws from random and numpy alone, as timm's augmentations do: a third of the time, for every clip."""
    import numpy as np

    before, seed = (random.getstate(), np.random.get_state()), derive(*parts)  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Global state of random, numpy and torch's CPU set from the parts inside the block, and as before after it."""
    import torch

    with seeded_draws(*parts):
        before = torch.get_rng_state()
        try:
            torch.manual_seed(derive(*parts))
            yield
        finally:
            torch.set_rng_state(before)


def use_deterministic_algorithms(on: bool) -> None:
    """Make torch refuse operations whose result can differ from run to run; to be called before the first CUDA call."""
    import os

    import torch

    if on == torch.are_deterministic_algorithms_enabled():
        return  # the call below imports torch's compiler, which takes seconds
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is only deterministic with this
        os.environ.setdefault("NCCL_ALGO", "Ring")  # else NCCL adds up the processes in an order of its own choice
        torch.backends.cudnn.benchmark = False  # it would choose the quickest kernel, which differs from run to run
    torch.use_deterministic_algorithms(on)
