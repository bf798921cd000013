"""Random streams are named: equal names, equal streams; different names, different streams; nothing global is touched."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hicmae import seeding

PARTS = st.lists(st.one_of(st.integers(0, 2**63), st.text(max_size=8)), min_size=1, max_size=4)


@given(PARTS, PARTS)
def test_seeds_are_equal_exactly_when_their_names_are(one: list[int | str], other: list[int | str]) -> None:
    assert (seeding.derive(*one) == seeding.derive(*other)) == (one == other)


@given(PARTS)
def test_a_seed_fits_every_generator(parts: list[int | str]) -> None:
    assert 0 <= seeding.derive(*parts) < 2**63
    assert seeding.numpy_generator(*parts).random() == seeding.numpy_generator(*parts).random()
    assert torch.rand(1, generator=seeding.torch_generator(*parts)) == torch.rand(1, generator=seeding.torch_generator(*parts))


def test_where_parts_are_cut_matters() -> None:
    assert (
        len({seeding.derive(1, 23), seeding.derive(12, 3), seeding.derive(123), seeding.derive("123"), seeding.derive(1, "23")})
        == 5
    )


def test_a_number_of_numpy_is_the_number_and_a_fraction_is_refused() -> None:
    assert seeding.derive(np.int64(3)) == seeding.derive(3)
    with pytest.raises(TypeError):
        seeding.derive(0.5)  # type: ignore[arg-type]


def test_streams_are_pinned() -> None:
    """A change here changes what every run draws: then say so in the changelog, and renew these numbers."""
    assert seeding.derive(0, "initial weights") == 4678217473557733604
    assert seeding.numpy_generator("order", 0, 1).integers(0, 1000, 3).tolist() == [703, 459, 543]


def test_seeds_do_not_depend_on_the_hash_of_the_process() -> None:
    code = "from hicmae.seeding import derive; print(derive('mask', 3, 'clip a'))"
    seen = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": h}, capture_output=True, text=True, check=True).stdout
        for h in ("1", "2")
    }
    assert seen == {f"{seeding.derive('mask', 3, 'clip a')}\n"}


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


def test_a_seeded_block_repeats_itself_and_leaves_the_global_state_as_it_was() -> None:
    with seeding.seeded("outside"):
        expected = draws()
    with seeding.seeded("outside"):
        with seeding.seeded("mix", 7):
            first = draws()
        with seeding.seeded("mix", 7):
            again = draws()
        assert draws() == expected
    assert first == again != expected


def test_a_seeded_block_restores_the_state_after_an_error() -> None:
    with seeding.seeded("outside"):
        with pytest.raises(ZeroDivisionError), seeding.seeded("inside"):
            _ = 1 / 0
        after = draws()
    with seeding.seeded("outside"):
        assert draws() == after


def test_deterministic_algorithms_can_be_required_and_released() -> None:
    seeding.use_deterministic_algorithms(True)
    try:
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        seeding.use_deterministic_algorithms(False)
    assert not torch.are_deterministic_algorithms_enabled()
