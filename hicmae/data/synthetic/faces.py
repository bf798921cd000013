"""An animated face: a speaker's looks, the movements of one clip, and its frames.

The mouth opens as the script says, the head moves and the eyes blink by chance; valence sets the expression, and nothing
here knows of arousal.
Shapes: T frames, N steps of the script.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hicmae.data.synthetic.drawing import Colour, Pose, paint, shade
from hicmae.data.synthetic.portrait import Face, FaceIdentity, portrait
from hicmae.data.synthetic.script import STEP_S, Array, Tracks, smooth, stream

DRAWN_PX = 96  # lengths in pixels below are for a picture of this size
SKINS: tuple[Colour, ...] = ((250, 219, 196), (240, 196, 160), (226, 172, 130), (200, 138, 98), (160, 104, 70), (122, 80, 56))
HAIRS: tuple[Colour, ...] = ((42, 32, 30), (78, 50, 36), (122, 78, 44), (196, 150, 84), (150, 66, 38), (128, 124, 122))
IRISES: tuple[Colour, ...] = ((84, 54, 34), (70, 104, 140), (84, 116, 78), (110, 84, 50))
CLOTHES: tuple[Colour, ...] = ((58, 92, 130), (132, 62, 70), (70, 110, 88), (98, 82, 128), (176, 140, 76), (62, 66, 78))
WALLS: tuple[Colour, ...] = ((206, 214, 220), (220, 212, 200), (198, 210, 202), (212, 204, 216), (188, 198, 212))
DARK_SKINS = SKINS[4:]
T = TypeVar("T")


def draw_looks(seed: int, speaker: int) -> FaceIdentity:
    """A speaker's looks. Odd speakers, who have the higher voices, more often have long hair, even ones a beard."""
    rng = stream(seed, "looks", speaker)
    high = bool(speaker % 2)
    skin: Colour = _dealt(SKINS, seed, "skin", speaker)
    dark = skin in DARK_SKINS
    styles = ("long", "bun", "long", "fringe") if high else ("short", "fringe", "short")
    return FaceIdentity(
        skin=skin,
        hair=_dealt(HAIRS[:2] if dark else HAIRS, seed, "hair", speaker),
        iris=_dealt(IRISES[:1] if dark else IRISES, seed, "iris", speaker),
        clothes=_dealt(CLOTHES, seed, "clothes", speaker),
        wall=_dealt(WALLS, seed, "wall", speaker),
        hair_style=_dealt(styles, seed, "style", speaker // 2),
        width=float(rng.uniform(0.72, 0.8)),
        jaw=float(rng.uniform(0.76, 0.86) if high else rng.uniform(0.83, 0.92)),
        eye_apart=float(rng.uniform(0.3, 0.34)),
        eye_size=float(rng.uniform(0.92, 1.12)),
        brow=float(rng.uniform(1.8, 2.4) if high else rng.uniform(2.3, 3.0)),
        nose=float(rng.uniform(0.9, 1.12)),
        mouth=float(rng.uniform(0.28, 0.33)),
        lips=float(rng.uniform(0.95, 1.25) if high else rng.uniform(0.75, 1.0)),
        beard=not high and _dealt((True, False, False), seed, "beard", speaker // 2),
        glasses=_dealt((True, False, False, False), seed, "glasses", speaker),
    )


def _dealt(options: Sequence[T], seed: int, name: str, speaker: int) -> T:
    """One of the options, dealt like cards: none comes again before the others have come."""
    rounds, place = divmod(speaker, len(options))
    return options[int(stream(seed, "deal", name, rounds).permutation(len(options))[place])]


def film(
    who: FaceIdentity, tracks: Tracks, valence: int, rng: np.random.Generator, times_s: Array, size_px: int
) -> NDArray[np.uint8]:
    """Pictures (T, size_px, size_px, 3) at evenly spaced times (T,); the numbers drawn do not depend on `valence` (0 or 1)."""
    face = act(who, tracks, valence, rng, times_s, size_px)
    return paint(portrait(face), _wall(face, size_px), len(times_s))


def act(who: FaceIdentity, tracks: Tracks, valence: int, rng: np.random.Generator, times_s: Array, size_px: int) -> Face:
    """Every movement of the clip: drifts of the head, blinks, the strength of the expression, the mouth of the script."""
    x, y, yaw, pitch, roll, effort, gaze = (_drift(rng, times_s) for _ in range(7))
    unit = size_px / DRAWN_PX
    pose = Pose(  # moves by a few pixels, about as much as faces that were cut out of a video
        x_px=(48 + float(rng.uniform(-1.2, 1.2)) + 0.7 * x) * unit,
        y_px=(50 + float(rng.uniform(-1.2, 1.2)) + 0.5 * y) * unit,
        scale_px=41 * float(rng.uniform(0.975, 1.025)) * unit,
        yaw=float(rng.uniform(-0.05, 0.05)) + 0.07 * yaw,
        pitch=float(rng.uniform(-0.03, 0.03)) + 0.035 * pitch,
        roll=float(rng.uniform(-0.025, 0.025)) + 0.025 * roll,
    )
    strength = float(rng.uniform(0.8, 1.15)) * np.clip(1 + 0.12 * effort, 0.7, 1.3)
    return Face(
        who=who,
        pose=pose,
        valence=strength if valence else -strength,
        opening=np.interp(times_s / STEP_S, np.arange(len(tracks.opening)), tracks.opening),
        mouth_width=np.interp(times_s / STEP_S, np.arange(len(tracks.width)), tracks.width),
        lids=_blinks(rng, times_s),
        gaze=np.clip(gaze, -1.5, 1.5),
        light=float(rng.uniform(0.94, 1.06)),
    )


def _drift(rng: np.random.Generator, times_s: Array) -> Array:
    """A slow wander around 0, of the order of 1, (T,): noise at 25 Hz, smoothed over a second."""
    rate_hz = 25
    wander = smooth(rng.standard_normal(int(times_s[-1] * rate_hz) + 2 * rate_hz + 2), 1.0, 1 / rate_hz)
    return np.interp(times_s * rate_hz + rate_hz, np.arange(len(wander)), wander * 4.0)


def _blinks(rng: np.random.Generator, times_s: Array) -> Array:
    """Lids (T,), shut for a sixth of a second every two seconds or so."""
    lids = np.ones(len(times_s))
    start_s = float(rng.uniform(0.1, 2.0))
    while start_s < times_s[-1]:
        lids = np.minimum(lids, np.interp(times_s - start_s, [0, 0.06, 0.09, 0.18], [1, 0.05, 0.05, 1]))
        start_s += float(rng.uniform(1.4, 3.6))
    return lids


def _wall(face: Face, size_px: int) -> NDArray[np.uint8]:
    """A wall with soft light from the upper left, (size_px, size_px, 3)."""
    across, down = np.meshgrid(np.linspace(0, 1, size_px), np.linspace(0, 1, size_px))
    light = 1.05 - 0.28 * np.hypot(across - 0.25, down - 0.15)
    wall = np.array(shade(face.who.wall, face.light))
    return np.clip(light[..., None] * wall, 0, 255).astype(np.uint8)
