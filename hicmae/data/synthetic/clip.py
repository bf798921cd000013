"""One generated clip: who speaks, what is said, and the two factors, turned into pictures and sound."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from hicmae.data.synthetic.faces import draw_looks, film
from hicmae.data.synthetic.script import Array, Tracks, perform, stream, write_script
from hicmae.data.synthetic.voices import SAMPLE_RATE_HZ, draw_voice, speak
from hicmae.data.synthetic.write import Frames


@dataclass(frozen=True)
class Take:
    """One clip to make. Seed, speaker and take decide all but the two factors: clips that differ in one can be compared."""

    seed: int
    speaker: int
    take: int
    arousal: int  # 0 calm, 1 excited: only in the voice
    valence: int  # 0 negative, 1 positive: only in the face
    duration_s: float = 2.0
    size_px: int = 96
    fps: Fraction = Fraction(25)
    silent: bool = False  # somebody who listens


def pictures(take: Take) -> Frames:
    """(T, size_px, size_px, 3), drawn at the middle of every frame's time."""
    frames = round(take.duration_s * take.fps)
    times_s = np.linspace(0.5, frames - 0.5, frames, dtype=np.float64) / float(take.fps)
    rng = stream(take.seed, "face", take.speaker, take.take)
    return film(draw_looks(take.seed, take.speaker), _tracks(take), take.valence, rng, times_s, take.size_px)


def sound(take: Take) -> Array:
    """(M,) at 16 kHz."""
    rng = stream(take.seed, "voice", take.speaker, take.take)
    samples = round(take.duration_s * SAMPLE_RATE_HZ)
    return speak(draw_voice(take.seed, take.speaker), _tracks(take), take.arousal, rng, samples)


def _tracks(take: Take) -> Tracks:
    """What is said, at the speaker's own pace; read by voice and face alike."""
    rng = stream(take.seed, "script", take.speaker, take.take)
    pace = draw_voice(take.seed, take.speaker).syllables_per_s
    syllables = [] if take.silent else write_script(rng, take.duration_s, pace)
    return perform(syllables, take.duration_s)
