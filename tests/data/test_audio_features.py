"""Features of sound: equal to the authors' release and to kaldi's, one by one and in batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from hicmae.data import audio


def kaldi(wave: torch.Tensor, audio_frames: int, mel_bins: int) -> torch.Tensor:
    """The release's `_wav2fbank` and normalisation, by torchaudio's own implementation."""
    features = torchaudio.compliance.kaldi.fbank(
        (wave - wave.mean())[None],
        htk_compat=True,
        sample_frequency=16000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=mel_bins,
        dither=0.0,
        frame_shift=10,
    )[:audio_frames]
    padded = torch.nn.functional.pad(features, (0, 0, 0, audio_frames - len(features)))
    return (padded + 4.2677393) / (2 * 4.5689974)


@pytest.mark.parametrize("name", ["short_1s", "exact_2560ms", "long_4s"])
def test_features_equal_the_authors_release(reference: Path, name: str) -> None:
    with np.load(reference / "official/fbank.npz") as values:
        wave, expected = torch.from_numpy(values[f"{name}/wave"][0]), values[f"{name}/fbank"]
    assert np.abs(audio.fbank(wave, 256, 128).numpy() - expected).max() < 1e-4


@given(seed=st.integers(0, 2**32 - 1), samples=st.integers(400, 60000), size=st.sampled_from([(256, 128), (128, 64), (64, 32)]))
@settings(max_examples=25, deadline=None)
def test_features_equal_kaldis_for_any_sound_and_size(seed: int, samples: int, size: tuple[int, int]) -> None:
    wave = torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1
    assert (audio.fbank(wave, *size) - kaldi(wave, *size)).abs().max() < 1e-4


def test_silence_and_a_constant_have_finite_features() -> None:
    for wave in (torch.zeros(16000), torch.full((16000,), 0.3)):
        assert torch.isfinite(audio.fbank(wave, 256, 128)).all()


def test_a_batch_equals_its_members_bit_by_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    waves = [torch.randn(length, generator=generator) for length in (400, 9000, 40960, 41200, 64000)]
    batch = audio.fbank_batch(waves, 256, 128)
    assert batch.shape == (5, 256, 128)
    for features, wave in zip(batch, waves, strict=True):
        assert torch.equal(features, audio.fbank(wave, 256, 128))


def test_short_sound_is_padded_with_the_features_of_nothing() -> None:
    features = audio.fbank(torch.randn(16000), 256, 128)
    assert torch.equal(features[98:], torch.full((158, 128), 4.2677393 / (2 * 4.5689974)))


def test_a_gain_shifts_all_features_alike() -> None:
    wave = torch.randn(41200)
    loud, soft = audio.fbank(wave, 256, 128), audio.fbank(wave * 0.5, 256, 128)
    heard = loud > loud.min()  # at 128 bins one triangle is narrower than the resolution and holds nothing
    assert heard.float().mean() > 0.99
    assert (soft - loud)[heard].numpy() == pytest.approx(np.log(0.5) / 4.5689974, abs=1e-4)


def test_sound_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter than one window"):
        audio.fbank(torch.zeros(399), 256, 128)
