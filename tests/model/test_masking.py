"""Masks: the exact number of hidden tokens, the structure of each kind, and nothing random but the generator."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hicmae.config import EncoderConfig, ObjectiveConfig
from hicmae.model.masking import audio_mask, hidden_tokens, video_mask

ENCODER = EncoderConfig(dim=16, heads=2, fusion_heads=2, image_px=64, audio_frames=128, mel_bins=64)  # 8x4x4 and 8x4 tokens
ratios = st.floats(0.26, 0.99)
kinds = st.tuples(st.sampled_from(["tube", "random"]), st.sampled_from(["random", "time", "frequency"]))


def objective(video: str, audio: str, ratio: float) -> ObjectiveConfig:
    return ObjectiveConfig(video_mask=video, audio_mask=audio, video_mask_ratio=ratio, audio_mask_ratio=ratio)


@given(kinds, ratios, st.integers(0, 2**32))
def test_every_mask_hides_exactly_the_announced_number(kind: tuple[str, str], ratio: float, seed: int) -> None:
    config, generator = objective(*kind, ratio), np.random.default_rng(seed)
    video, audio = hidden_tokens(ENCODER, config)
    for _ in range(3):
        assert int(video_mask(ENCODER, config, generator).sum()) == video
        assert int(audio_mask(ENCODER, config, generator).sum()) == audio


@given(ratios, st.integers(0, 2**32))
def test_structured_masks_hide_tubes_time_steps_and_mel_bands(ratio: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    tube = video_mask(ENCODER, objective("tube", "random", ratio), generator).reshape(8, 16)
    assert (tube == tube[0]).all()
    assert tube[0].sum() == int(ratio * 16)
    time = audio_mask(ENCODER, objective("tube", "time", ratio), generator).reshape(8, 4)
    assert (time == time[:, :1]).all()
    assert time[:, 0].sum() == int(ratio * 8)
    mel = audio_mask(ENCODER, objective("tube", "frequency", ratio), generator).reshape(8, 4)
    assert (mel == mel[:1]).all()
    assert mel[0].sum() == int(ratio * 4)


def test_the_published_masks_leave_80_video_and_26_audio_tokens() -> None:
    video, audio = hidden_tokens(EncoderConfig(), ObjectiveConfig())
    assert (800 - video, 128 - audio) == (80, 26)


def test_masks_follow_from_the_generator_alone() -> None:
    config = objective("random", "random", 0.75)
    state = np.random.get_state()[1].copy()  # noqa: NPY002 (the global state is what must not move)
    first, second = (video_mask(ENCODER, config, np.random.default_rng(7)) for _ in range(2))
    assert (first == second).all()
    assert (first != video_mask(ENCODER, config, np.random.default_rng(8))).any()
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_every_token_is_hidden_as_often_as_the_others() -> None:
    config, generator = objective("random", "random", 0.75), np.random.default_rng(0)
    share = np.mean([audio_mask(ENCODER, config, generator) for _ in range(4000)], axis=0)
    assert np.abs(share - 0.75).max() < 5 * np.sqrt(0.75 * 0.25 / 4000)
