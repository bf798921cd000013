"""What the generated corpus promises: arousal is in the voice alone, valence in the face alone, and both share one script.

Clips that differ in one factor are compared bit by bit; then classifiers that know nothing of the generator look at decoded
files. Voices are measured against the pitch and the formants that they were made from.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import solve_toeplitz
from scipy.signal import stft
from scipy.stats import binomtest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hicmae.data.synthetic.clip import Take, pictures, sound
from hicmae.data.synthetic.script import STEP_S, VOWELS, Tracks, stream
from hicmae.data.synthetic.voices import draw_voice, speak

RATE_HZ = 16_000
takes = st.builds(
    Take,
    seed=st.integers(0, 2**32),
    speaker=st.integers(0, 200),
    take=st.integers(0, 200),
    arousal=st.integers(0, 1),
    valence=st.integers(0, 1),
    duration_s=st.sampled_from([0.6, 1.0, 1.48]),
    size_px=st.sampled_from([64, 80]),
)

pytestmark = pytest.mark.xdist_group("truth")  # its fixtures are made once


@settings(max_examples=15, deadline=None)
@given(takes)
def test_arousal_does_not_change_a_single_pixel_nor_valence_a_single_sample(take: Take) -> None:
    aroused, smiling = replace(take, arousal=1 - take.arousal), replace(take, valence=1 - take.valence)
    np.testing.assert_array_equal(pictures(take), pictures(aroused))
    np.testing.assert_array_equal(sound(take), sound(smiling))
    assert not np.allclose(sound(take), sound(aroused), atol=1e-3)
    assert np.abs(pictures(take).astype(float) - pictures(smiling)).max() > 40


@settings(max_examples=15, deadline=None)
@given(takes)
def test_every_clip_is_a_whole_picture_and_an_audible_unclipped_sound(take: Take) -> None:
    frames, wave = pictures(take), sound(take)
    assert frames.shape == (round(25 * take.duration_s), take.size_px, take.size_px, 3)
    assert frames.dtype == np.uint8
    assert wave.shape == (round(RATE_HZ * take.duration_s),)
    assert np.isfinite(wave).all()
    assert 0.01 < np.abs(wave).max() <= 0.98
    assert np.mean(np.abs(wave) > 0.97) < 1e-3


def test_random_streams_depend_on_every_name_and_on_nothing_else() -> None:
    """(1,) and (1, 0) too: seed sequences pad with zeros."""
    names: list[tuple[int | str, ...]] = [("voice", 1), ("voice", 1, 0), ("voice", 1, 1), ("voice", 2), ("face", 1, 0), ("face",)]
    first = [stream(seed, *name).random(3).tolist() for seed in (0, 1) for name in names]
    assert len({tuple(numbers) for numbers in first}) == 12
    assert first == [stream(seed, *name).random(3).tolist() for seed in (0, 1) for name in names]


def held_vowel(vowel: str, seconds: float = 1.0) -> Tracks:
    """One vowel at one pitch: what a script never asks for, and what can be measured best."""
    steps = round(seconds / STEP_S) + 1
    one, zero = np.ones(steps), np.zeros(steps)
    formants = np.tile(np.array(VOWELS[vowel].formants_hz, dtype=float), (steps, 1))
    return Tracks(one, zero, 1000 * one, formants, zero, one, one)


def measured_pitch_hz(wave: np.ndarray) -> float:
    """By autocorrelation: the first lag at which the wave is nearly itself again."""
    wave = wave - wave.mean()
    lags = np.correlate(wave, wave, "full")[len(wave) - 1 :]
    shortest, longest = RATE_HZ // 450, RATE_HZ // 70
    likeness = lags[shortest:longest]
    first = int(np.argmax(likeness > 0.9 * likeness.max()))
    return RATE_HZ / (shortest + first + int(np.argmax(likeness[first : first + 8])))


def measured_formants_hz(wave: np.ndarray) -> np.ndarray:
    """Narrow poles of a linear prediction of order 14, in rising order."""
    emphasised = np.append(wave[0], wave[1:] - 0.9 * wave[:-1]) * np.hanning(len(wave))
    lags = np.correlate(emphasised, emphasised, "full")[len(wave) - 1 :][:15]
    poles = np.roots(np.r_[1, -solve_toeplitz(lags[:14], lags[1:])])
    poles = poles[(poles.imag > 0) & (-np.log(np.abs(poles)) * RATE_HZ / np.pi < 500)]
    return np.sort(np.angle(poles) * RATE_HZ / (2 * np.pi))


@pytest.mark.parametrize("speaker", range(6))
@pytest.mark.parametrize("vowel", ["a", "i", "u"])
def test_a_voice_has_its_speakers_formants_and_pitch(speaker: int, vowel: str) -> None:
    voice = draw_voice(0, speaker)
    wave = speak(voice, held_vowel(vowel), 1, np.random.default_rng(speaker), RATE_HZ)[4000:12000]
    expected = np.array(VOWELS[vowel].formants_hz) * voice.tract_scale
    np.testing.assert_allclose(measured_formants_hz(wave)[:3], expected, rtol=0.13)  # between harmonics up to 300 Hz apart
    octaves = np.log2(measured_pitch_hz(wave) / voice.pitch_hz)
    assert 0.55 - 0.1 < octaves < 0.55 + 0.1  # half an octave above the calm voice


def test_an_excited_voice_is_higher_louder_and_brighter_than_the_same_one_calm() -> None:
    for speaker in range(4):
        for number in range(3):
            calm, excited = (
                speak(draw_voice(0, speaker), held_vowel("i"), arousal, np.random.default_rng(number), RATE_HZ)[4000:12000]
                for arousal in (0, 1)
            )
            assert 20 * np.log10(excited.std() / calm.std()) > 5
            assert brightness(excited) > brightness(calm) + 10
            assert measured_pitch_hz(excited) > 1.3 * measured_pitch_hz(calm)


def brightness(wave: np.ndarray) -> float:
    """Energy above 1.2 kHz relative to that below, in dB: no matter how loud."""
    spectrum = np.abs(np.fft.rfft(wave)) ** 2
    edge = round(1200 * len(wave) / RATE_HZ)
    return float(10 * np.log10(spectrum[edge:].sum() / spectrum[8:edge].sum()))


def test_syllables_come_equally_fast_in_both_manners() -> None:
    """Rate belongs to the speaker: the calm and the excited take have one envelope."""
    for number in range(5):
        calm, excited = (envelope(sound(Take(0, number, number, arousal, 0))) for arousal in (0, 1))
        assert np.corrcoef(np.log(calm), np.log(excited))[0, 1] > 0.9


def envelope(wave: np.ndarray) -> np.ndarray:
    """Loudness per frame of the picture, (T,)."""
    return np.sqrt((wave.reshape(-1, RATE_HZ // 25) ** 2).mean(1))


def test_the_mouth_moves_with_the_sound_of_its_own_clip() -> None:
    mouths, voices = [], []
    for speaker in range(6):
        for number in range(3):
            take = Take(0, speaker, number, number % 2, (speaker + number) % 2)
            frames = pictures(take)[:, 55:88, 30:66].astype(float)
            mouths.append((frames[..., 0] - frames[..., 1]).mean((1, 2)))  # lips, tongue: red rises as the mouth opens
            voices.append(envelope(sound(take)))
    pairs = np.corrcoef(np.stack(mouths), np.stack(voices))[: len(mouths), len(mouths) :]  # (clips, clips)
    own, others = np.diag(pairs), pairs[~np.eye(len(pairs), dtype=bool)]
    assert own.mean() > 0.45
    assert own.mean() > others.mean() + 0.3


@pytest.fixture(scope="module")
def corpus(generated_data: Path) -> Path:
    return generated_data / "synthetic"


@pytest.fixture(scope="module")
def rows(corpus: Path) -> list[dict[str, str]]:
    with (corpus / "clips.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def seen(corpus: Path, rows: list[dict[str, str]]) -> np.ndarray:
    """Of every clip: the mean, spread and motion of a 24x24 picture, (clips, features)."""
    features = []
    for row in rows:
        with av.open(str(corpus / row["file"])) as container:
            frames = np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)]).astype(float)
        small = frames.reshape(len(frames), 24, 4, 24, 4).mean((2, 4))
        motion = np.abs(np.diff(small, axis=0)).mean(0)
        features.append(np.concatenate([small.mean(0).ravel(), small.std(0).ravel(), motion.ravel()]))
    return np.array(features)


@pytest.fixture(scope="module")
def heard(corpus: Path, rows: list[dict[str, str]]) -> np.ndarray:
    """Of every clip, at a random volume: the mean, spread and motion of 40 log mel bands, (clips, features)."""
    gains = np.random.default_rng(0).uniform(0.5, 1.5, len(rows))
    features = []
    for row, gain in zip(rows, gains, strict=True):
        with av.open(str(corpus / row["file"])) as container:
            wave = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        bands = log_mel(gain * wave[: 2 * RATE_HZ])
        features.append(np.concatenate([bands.mean(1), bands.std(1), np.abs(np.diff(bands, axis=1)).mean(1)]))
    return np.array(features)


def log_mel(wave: np.ndarray) -> np.ndarray:
    hertz, _, spectrum = stft(wave, RATE_HZ, nperseg=400, noverlap=240, nfft=512)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42) / 2595) - 1)
    rising = (hertz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - hertz) / np.diff(edges)[1:, None]
    return np.log(np.maximum(0, np.minimum(rising, falling)) @ np.abs(spectrum) ** 2 + 1e-10)


def right(features: np.ndarray, rows: list[dict[str, str]], target: str) -> int:
    """Correct answers of a linear classifier about speakers that it has never met."""
    folds, wanted = np.array([row["test_fold"] for row in rows]), np.array([row[target] for row in rows])
    correct = 0
    for fold in np.unique(folds):
        classifier = make_pipeline(StandardScaler(), PCA(40, random_state=0), LogisticRegression(C=0.1, max_iter=2000))
        classifier.fit(features[folds != fold], wanted[folds != fold])
        correct += int((classifier.predict(features[folds == fold]) == wanted[folds == fold]).sum())
    return correct


@pytest.mark.slow
def test_one_stream_tells_one_factor_and_nothing_of_the_other(
    heard: np.ndarray, seen: np.ndarray, rows: list[dict[str, str]]
) -> None:
    assert right(heard, rows, "arousal") / len(rows) > 0.95
    assert right(seen, rows, "valence") / len(rows) > 0.9
    for features, other in ((heard, "valence"), (seen, "arousal")):
        correct = right(features, rows, other)
        assert binomtest(correct, len(rows), 0.5).pvalue > 0.01, f"{other}: {correct} of {len(rows)} is not chance"


@pytest.mark.slow
def test_the_four_classes_need_both_streams(heard: np.ndarray, seen: np.ndarray, rows: list[dict[str, str]]) -> None:
    for features in (heard, seen):
        correct = right(features, rows, "label")
        assert binomtest(correct, len(rows), 0.5, alternative="greater").pvalue > 0.01, f"{correct} of {len(rows)} beats one half"
    assert right(np.concatenate([heard, seen], axis=1), rows, "label") / len(rows) > 0.75
