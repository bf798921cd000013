"""What a generated clip says: syllables, their timing, and what they ask of a throat and of a mouth.

A script knows nothing of arousal or valence. Voice and face both read the same script, so the mouth moves with the sound
while neither stream can tell the other's factor. All randomness comes from `stream`, one independent generator per purpose.
Shapes: N steps of STEP_S, the control rate of the voice and of the mouth.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
STEP_S = 0.005


@dataclass(frozen=True)
class Vowel:
    """Formants of an average man (Peterson and Barney 1952, Table II) and the mouth that makes them, 0 to 1."""

    formants_hz: tuple[float, float, float]
    opening: float
    width: float  # 1 is at rest; rounded vowels are narrower


@dataclass(frozen=True)
class Consonant:
    """What precedes the vowel. `locus_hz` is where the second formant starts; levels are relative to a vowel's."""

    locus_hz: float
    closure_s: float
    voicing: float
    hiss: float
    hiss_hz: float
    opening: float


VOWELS = {
    "a": Vowel((730, 1090, 2440), opening=1.0, width=0.98),
    "ae": Vowel((660, 1720, 2410), opening=0.85, width=1.08),
    "e": Vowel((530, 1840, 2480), opening=0.6, width=1.1),
    "i": Vowel((270, 2290, 3010), opening=0.35, width=1.15),
    "o": Vowel((570, 840, 2410), opening=0.7, width=0.82),
    "u": Vowel((300, 870, 2240), opening=0.3, width=0.72),
}
CONSONANTS = {
    "m": Consonant(900, 0.07, voicing=0.35, hiss=0.0, hiss_hz=1000, opening=0.0),
    "b": Consonant(900, 0.05, voicing=0.1, hiss=0.25, hiss_hz=1000, opening=0.0),
    "d": Consonant(1800, 0.05, voicing=0.1, hiss=0.5, hiss_hz=3800, opening=0.2),
    "k": Consonant(2100, 0.07, voicing=0.0, hiss=0.6, hiss_hz=2000, opening=0.25),
    "s": Consonant(1750, 0.1, voicing=0.0, hiss=0.8, hiss_hz=5600, opening=0.12),
    "l": Consonant(1200, 0.05, voicing=0.6, hiss=0.0, hiss_hz=1000, opening=0.3),
}


@dataclass(frozen=True)
class Syllable:
    start_s: float
    duration_s: float
    consonant: str
    vowel: str
    stress: float  # 0.6 to 1


@dataclass(frozen=True)
class Tracks:
    """A script at the control rate; all levels from 0 to 1. `accent` is the melody, in units of the speaker's range."""

    voicing: Array  # (N,)
    hiss: Array  # (N,)
    hiss_hz: Array  # (N,)
    formants_hz: Array  # (N, 3)
    accent: Array  # (N,)
    opening: Array  # (N,) of the mouth
    width: Array  # (N,) of the mouth, 1 at rest


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """An independent random generator for a named purpose: equal names give equal numbers, on any process."""
    keys = [zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names]
    # How many names there are is part of the key: seed sequences pad with zeros, so (1,) and (1, 0) would be one stream.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, len(keys), *keys])))


def write_script(rng: np.random.Generator, duration_s: float, syllables_per_s: float) -> list[Syllable]:
    """Syllables that fill the clip, with now and then a short pause."""
    syllables: list[Syllable] = []
    start = float(rng.uniform(0.04, 0.14))
    while True:
        duration = float(rng.uniform(0.85, 1.2)) / syllables_per_s
        if start + duration > duration_s - 0.04:
            return syllables
        consonant, vowel = str(rng.choice(list(CONSONANTS))), str(rng.choice(list(VOWELS)))
        syllables.append(Syllable(start, duration, consonant, vowel, float(rng.uniform(0.6, 1.0))))
        start += duration + (float(rng.uniform(0.06, 0.16)) if rng.random() < 0.2 else 0.0)


def perform(syllables: list[Syllable], duration_s: float) -> Tracks:
    """The continuous movements that a script asks for: targets per syllable, then smoothed as articulators move."""
    steps = round(duration_s / STEP_S) + 1
    neutral = np.array([500.0, 1500.0, 2500.0])
    voicing, hiss, opening, accent = (np.zeros(steps) for _ in range(4))
    width, hiss_hz, formants = np.ones(steps), np.full(steps, 3000.0), np.tile(neutral, (steps, 1))
    for syllable in syllables:
        consonant, vowel = CONSONANTS[syllable.consonant], VOWELS[syllable.vowel]
        first, end = round(syllable.start_s / STEP_S), round((syllable.start_s + syllable.duration_s) / STEP_S)
        open_at = first + round(consonant.closure_s / STEP_S)
        voicing[first:open_at], voicing[open_at:end] = consonant.voicing, syllable.stress * (0.4 + 0.6 * vowel.opening)
        hiss[_hiss_span(consonant, first, open_at)] = consonant.hiss * syllable.stress
        hiss_hz[first : open_at + 6] = consonant.hiss_hz
        formants[first:end] = vowel.formants_hz
        formants[first:open_at, :2] = min(300.0, vowel.formants_hz[0]), consonant.locus_hz
        opening[first:open_at], opening[open_at:end] = consonant.opening, vowel.opening * syllable.stress
        width[first:end] = vowel.width
        accent[open_at:end] = 2.0 * syllable.stress - 1.2
    return Tracks(
        voicing=smooth(voicing, 0.035),
        hiss=smooth(hiss, 0.015),
        hiss_hz=hiss_hz,
        formants_hz=smooth(formants, 0.06),
        accent=smooth(accent, 0.25) + np.linspace(0.35, -0.35, steps),
        opening=smooth(opening, 0.1),
        width=smooth(width, 0.14),
    )


def _hiss_span(consonant: Consonant, first: int, open_at: int) -> slice:
    """Fricatives sound while they last; stops sound as a burst when they open."""
    return slice(first, open_at) if consonant.closure_s >= 0.1 else slice(open_at - 1, open_at + 3)


def smooth(values: Array, window_s: float, step_s: float = STEP_S) -> Array:
    """Moving average over time (axis 0) with a Hann window, the ends held."""
    half = max(1, round(window_s / step_s / 2))
    window = np.hanning(2 * half + 3)[1:-1]
    padded = np.concatenate([np.repeat(values[:1], half, 0), values, np.repeat(values[-1:], half, 0)])
    rows = padded.reshape(len(padded), -1).T  # (N + 2 half, ...) -> (columns, N + 2 half)
    smoothed = np.stack([np.convolve(row, window / window.sum(), mode="valid") for row in rows], axis=1)
    return smoothed.reshape(values.shape)
