"""A voice by source and filter: a band-limited glottal pulse train and breath, through the formants of the script.

Arousal lives here and only here: an excited voice is higher, livelier in melody, louder, and its spectrum falls less
steeply; a calm one is lower, flatter, softer and breathier. How fast and how clearly someone speaks does not depend on it.
Shapes: N steps of STEP_S, M sound samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, sosfilt

from hicmae.data.synthetic.script import STEP_S, Array, Tracks, smooth, stream

SAMPLE_RATE_HZ = 16_000
STEP_SAMPLES = round(STEP_S * SAMPLE_RATE_HZ)
FORMANT_WIDTHS_HZ = (70.0, 90.0, 140.0, 220.0, 300.0)
BREATH, HISS = 0.01, 0.4  # noise in vowels (beside a first harmonic of 1) and in consonants (beside vowels of power 1)
ROOM_NOISE_DB = -62.0
TOP_HZ = 7400.0  # no harmonic above: AAC at this rate cuts there too


@dataclass(frozen=True)
class VoiceIdentity:
    """What stays with a speaker."""

    pitch_hz: float
    tract_scale: float  # formants relative to an average man's; a shorter tract gives higher ones
    breath: float
    syllables_per_s: float
    level_db: float


@dataclass(frozen=True)
class Manner:
    """How arousal changes a voice. The tilt is the fall of the harmonics before the formants, per octave."""

    pitch_octaves: float
    range_octaves: float
    tilt_db: float
    level_db: float
    breath: float


MANNERS = (
    Manner(pitch_octaves=-0.1, range_octaves=0.06, tilt_db=-12.0, level_db=-28.0, breath=1.0),
    Manner(pitch_octaves=0.55, range_octaves=0.32, tilt_db=-3.5, level_db=-19.5, breath=0.3),
)


def draw_voice(seed: int, speaker: int) -> VoiceIdentity:
    """Low and high voices in turn, each with its own throat."""
    rng = stream(seed, "throat", speaker)
    high = speaker % 2
    return VoiceIdentity(
        pitch_hz=float(rng.uniform(170, 215) if high else rng.uniform(95, 130)),
        tract_scale=float(rng.uniform(1.12, 1.2) if high else rng.uniform(0.95, 1.04)),
        breath=float(rng.uniform(0.6, 1.4)),
        syllables_per_s=float(rng.uniform(3.4, 4.6)),
        level_db=float(rng.uniform(-1.5, 1.5)),
    )


def speak(identity: VoiceIdentity, tracks: Tracks, arousal: int, rng: np.random.Generator, samples: int) -> Array:
    """Sound of shape (M,) within -1 to 1, at SAMPLE_RATE_HZ. The numbers drawn do not depend on `arousal`."""
    manner = _on_this_day(MANNERS[arousal], rng)
    white = rng.standard_normal((3, samples))
    pitch_hz = pitch(identity, manner, tracks, rng)
    at_samples = np.arange(samples) / STEP_SAMPLES
    pulses = glottal_pulses(_at(at_samples, pitch_hz), manner.tilt_db)
    breath = BREATH * identity.breath * manner.breath * white[0]
    voiced = _levelled(_through(pulses + breath, _formant_sections(identity, tracks))) * _at(at_samples, tracks.voicing)
    hiss = _through(white[1] * _at(at_samples, tracks.hiss), _hiss_sections(tracks))
    speech = voiced + HISS * hiss
    level_db = manner.level_db + identity.level_db + float(rng.uniform(-1.5, 1.5))
    sound = speech / _rms(speech) * 10 ** (level_db / 20) + white[2] * 10 ** (ROOM_NOISE_DB / 20)
    return np.clip(_gentle_room(sound), -0.98, 0.98)


def pitch(identity: VoiceIdentity, manner: Manner, tracks: Tracks, rng: np.random.Generator) -> Array:
    """The fundamental in Hz at every step, (N,): the speaker's pitch, the script's melody, a slight unsteadiness."""
    unsteady = smooth(rng.standard_normal(len(tracks.accent)), 0.03) * 0.012
    return identity.pitch_hz * 2 ** (manner.pitch_octaves + manner.range_octaves * tracks.accent + unsteady)


def glottal_pulses(pitch_hz: Array, tilt_db: float) -> Array:
    """Cosines at every multiple of the pitch (M,) up to TOP_HZ, `tilt_db` weaker per octave: pulses without aliasing."""
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
    turn = 2 * np.cos(phase)
    previous, current, pulses = np.ones_like(phase), np.cos(phase), np.zeros_like(phase)
    for harmonic in range(1, int(TOP_HZ / pitch_hz.min()) + 1):
        audible = np.clip((TOP_HZ - harmonic * pitch_hz) / 300.0, 0.0, 1.0)  # fades in and out as the pitch moves
        pulses += current * audible * harmonic ** (tilt_db / 6.0206)
        previous, current = current, turn * current - previous  # cos((k + 1) x) from the two before
    return pulses


def _on_this_day(manner: Manner, rng: np.random.Generator) -> Manner:
    """Nobody is excited in the same way twice."""
    octaves, span, tilt = (float(rng.uniform(-1, 1)) for _ in range(3))
    return Manner(
        manner.pitch_octaves + 0.08 * octaves,
        manner.range_octaves * (1 + 0.25 * span),
        manner.tilt_db + 1.0 * tilt,
        manner.level_db,
        manner.breath,
    )


def _formant_sections(identity: VoiceIdentity, tracks: Tracks) -> Array:
    """Five resonators in a row for every step, (N, 5, 6) second-order sections."""
    steps = len(tracks.voicing)
    upper = np.tile([3400.0, 4500.0], (steps, 1))
    centres = np.concatenate([tracks.formants_hz, upper], axis=1) * identity.tract_scale  # (N, 5)
    return _resonators(centres, np.array(FORMANT_WIDTHS_HZ))


def _hiss_sections(tracks: Tracks) -> Array:
    """One broad band for every step, (N, 1, 6), silent at 0 Hz and with unit gain at its centre."""
    centres = tracks.hiss_hz[:, None]
    sections = _resonators(centres, centres * 0.35)
    sections[..., :3] = 1.0, -1.0, 0.0
    late = np.exp(-2j * np.pi * centres / SAMPLE_RATE_HZ)[..., None] ** np.arange(3)  # delays of 0, 1, 2 samples
    gain = np.abs((sections[..., :3] * late).sum(-1) / (sections[..., 3:] * late).sum(-1))
    sections[..., :3] /= gain[..., None]
    return sections


def _resonators(centres_hz: Array, widths_hz: Array) -> Array:
    """Klatt's digital resonator (1980, Eq. 1-4), unit gain at 0 Hz: centres (N, S) to sections (N, S, 6)."""
    radius = np.exp(-np.pi * np.broadcast_to(widths_hz, centres_hz.shape) / SAMPLE_RATE_HZ)
    a1 = -2 * radius * np.cos(2 * np.pi * centres_hz / SAMPLE_RATE_HZ)
    a2 = radius**2
    zero, one = np.zeros_like(a1), np.ones_like(a1)
    return np.stack([1 + a1 + a2, zero, zero, one, a1, a2], axis=-1)


def _through(source: Array, sections: Array) -> Array:
    """Filter (M,) with sections (N, S, 6) that change every other step, 10 ms; the filter's memory is carried over."""
    filtered = np.zeros_like(source)
    memory = np.zeros((sections.shape[1], 2))
    for step in range(0, len(sections), 2):
        block = slice(step * STEP_SAMPLES, (step + 2) * STEP_SAMPLES)
        if source[block].size:
            filtered[block], memory = sosfilt(sections[step], source[block], zi=memory)
    return filtered


def _levelled(sound: Array) -> Array:
    """Power 1 throughout: how loud a syllable is follows from the script, not from how vowels and manners fit together."""
    steps = len(sound) // STEP_SAMPLES
    power = np.mean(sound[: steps * STEP_SAMPLES].reshape(steps, STEP_SAMPLES) ** 2, axis=1)  # (N,)
    level = np.sqrt(smooth(power, 0.06)) + 1e-9
    return sound / _at(np.arange(len(sound)) / STEP_SAMPLES - 0.5, level)


def _gentle_room(sound: Array) -> Array:
    """No rumble below 60 Hz, as from any microphone."""
    return np.asarray(sosfilt(butter(2, 60, "highpass", fs=SAMPLE_RATE_HZ, output="sos"), sound))


def _at(at_samples: Array, track: Array) -> Array:
    return np.interp(at_samples, np.arange(len(track)), track)


def _rms(sound: Array) -> float:
    return float(np.sqrt(np.mean(sound**2))) or 1.0
