"""Which frames and which sound are seen: equal to the authors' release where that is fixed, in bounds where it is random."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hicmae.data import sampling

PLANS = json.loads((Path(__file__).parents[1] / "golden/frame_plans.json").read_text())


@pytest.mark.parametrize("name", PLANS["test_views"])
def test_test_views_equal_the_release(name: str) -> None:
    count, _, _, stride = name.split("_")
    views = sampling.test_views(int(count), 16, int(stride), segments=2)
    found = [{"frames": list(view.frames), "audio_first_frame": view.first, "audio_last_frame": view.last} for view in views]
    assert found == PLANS["test_views"][name]


@pytest.mark.parametrize("name", PLANS["train_short_clips"])
def test_short_training_clips_equal_the_release(name: str) -> None:
    count, _, _, stride = name.split("_")
    plan = sampling.train_plan(int(count), 16, int(stride), np.random.default_rng(0))
    assert list(plan.frames) == PLANS["train_short_clips"][name]


@given(count=st.integers(1, 400), stride=st.integers(1, 6), frames=st.sampled_from([2, 8, 16]), seed=st.integers(0, 99))
def test_plans_stay_inside_the_clip(count: int, stride: int, frames: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    plans = [
        sampling.train_plan(count, frames, stride, random),
        sampling.pretrain_plan(count, frames, stride, random),
        *sampling.test_views(count, frames, stride, 2),
    ]
    for plan in plans:
        assert len(plan.frames) == frames
        assert list(plan.frames) == sorted(plan.frames)
        assert plan.frames[0] >= 0
        assert plan.frames[-1] < count
        assert 0 <= plan.first <= plan.last < count


def test_training_starts_reach_both_ends_of_the_clip() -> None:
    random = np.random.default_rng(0)
    train = [sampling.train_plan(70, 16, 4, random) for _ in range(200)]
    assert (min(plan.frames[0] for plan in train), max(plan.frames[-1] for plan in train)) == (0, 68)
    pretrain = [sampling.pretrain_plan(70, 16, 4, random) for _ in range(200)]
    assert {plan.frames[0] for plan in pretrain} == set(range(7))
    assert all(np.diff(plan.frames).tolist() == [4] * 15 for plan in pretrain)
    assert all(plan.last == min(plan.frames[-1] + 4, 69) for plan in pretrain)


def test_sound_by_share_of_the_clip() -> None:
    plan = sampling.Plan((0,), first=25, last=50)
    assert sampling.relative_span(plan, 101, 32000, 1024) == slice(8000, 16000)
    assert sampling.relative_span(sampling.Plan((0,), 5, 5), 101, 32000, 1024) == slice(0, 32000)
    assert sampling.relative_span(plan, 1, 32000, 1024) == slice(0, 32000)


def test_sound_by_time() -> None:
    assert sampling.timed_span(0.4, 2.96, 16000) == slice(6400, 6400 + 40960)
