"""timm's RandAugment on whole clips: timm draws operations and magnitudes, and each operation is applied to all frames at once.

timm works on one Pillow image at a time, which would take several times as long as all the rest of an example. Here its
operations are replaced by ones on arrays (T, H, W, 3) uint8, equal to Pillow's up to rounding. Turns, shears and shifts are
interpolated bilinearly (the release: bicubically, at five times the cost).
"""

from __future__ import annotations

import math
import random as python_random
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hicmae.errors import UsageError
from hicmae.seeding import seeded

Frames = NDArray[np.uint8]
FILL = (128, 128, 128)  # timm's colour of what comes in from outside
GREY_LEVELS = np.arange(256)
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's ImageFilter.SMOOTH


def rand_augment(frames: Frames, policy: str, seed_parts: Sequence[int | str]) -> Frames:
    """The same operations with the same magnitudes on every frame (T, H, W, 3). Raises UsageError for what timm refuses."""
    apply = _policy(policy, frames.shape[1])
    with seeded(*seed_parts):  # timm draws from the global state of random and numpy
        changed: Frames = apply(frames)
    return changed


@cache
def _policy(policy: str, size_px: int) -> Callable[[Frames], Frames]:
    from timm.data.auto_augment import rand_augment_transform

    options = {"translate_const": int(size_px * 0.45), "interpolation": Image.Resampling.BILINEAR}
    try:
        transform = rand_augment_transform(policy, options)
    except (AssertionError, ValueError, KeyError) as error:
        remedy = "write it as rand-m7-n4-mstd0.5-inc1"
        raise UsageError(f"augment.rand_augment = {policy!r}: timm refuses it ({error}); {remedy}") from None
    for operation in transform.ops:
        operation.aug_fn = OPERATIONS.get(operation.name) or partial(_one_by_one, operation.aug_fn)
    made: Callable[[Frames], Frames] = transform
    return made


def _one_by_one(operation: Callable[..., Image.Image], frames: Frames, *level: Any, **options: Any) -> Frames:
    """An operation of timm that has no counterpart here, with the same random numbers for every frame."""
    state = python_random.getstate()
    changed = []
    for frame in frames:
        python_random.setstate(state)
        changed.append(np.asarray(operation(Image.fromarray(frame), *level, **options)))
    return np.stack(changed)


def _affine(frames: Frames, matrix: Sequence[float]) -> Frames:
    """Every pixel (x, y) comes from (a x + b y + c, d x + e y + f), pixels being squares, as in Pillow's Image.transform."""
    a, b, c, d, e, f = matrix
    centred = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    size = frames.shape[2], frames.shape[1]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return _stacked(frames, lambda frame: cv2.warpAffine(frame, centred, size, flags=flags, borderValue=FILL))


def _rotate(frames: Frames, degrees: float, **_: Any) -> Frames:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y, x = frames.shape[1] / 2, frames.shape[2] / 2
    return _affine(frames, (cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y))


def _shear_x(frames: Frames, factor: float, **_: Any) -> Frames:
    return _affine(frames, (1, factor, 0, 0, 1, 0))


def _shear_y(frames: Frames, factor: float, **_: Any) -> Frames:
    return _affine(frames, (1, 0, 0, factor, 1, 0))


def _translate_x(frames: Frames, share: float, **_: Any) -> Frames:
    return _affine(frames, (1, 0, share * frames.shape[2], 0, 1, 0))


def _translate_y(frames: Frames, share: float, **_: Any) -> Frames:
    return _affine(frames, (1, 0, 0, 0, 1, share * frames.shape[1]))


def _invert(frames: Frames, **_: Any) -> Frames:
    return np.bitwise_not(frames)


def _posterize(frames: Frames, bits_to_keep: int, **_: Any) -> Frames:
    return frames & np.uint8(256 - 2 ** (8 - bits_to_keep)) if bits_to_keep < 8 else frames


def _solarize(frames: Frames, threshold: int, **_: Any) -> Frames:
    return _looked_up(frames, np.where(threshold > GREY_LEVELS, GREY_LEVELS, 255 - GREY_LEVELS))


def _solarize_add(frames: Frames, add: int, threshold: int = 128, **_: Any) -> Frames:
    return _looked_up(frames, np.where(threshold > GREY_LEVELS, np.minimum(255, GREY_LEVELS + add), GREY_LEVELS))


def _brightness(frames: Frames, factor: float, **_: Any) -> Frames:
    return _looked_up(frames, GREY_LEVELS * factor)


def _contrast(frames: Frames, factor: float, **_: Any) -> Frames:
    def change(frame: Frames) -> NDArray[Any]:
        mean = int(cv2.mean(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))[0] + 0.5)
        return cv2.LUT(frame, _table(mean + factor * (GREY_LEVELS - mean)))

    return _stacked(frames, change)


def _color(frames: Frames, factor: float, **_: Any) -> Frames:
    def change(frame: Frames) -> NDArray[Any]:
        grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        return cv2.addWeighted(frame, factor, grey, 1 - factor, 0)

    return _stacked(frames, change)


def _sharpness(frames: Frames, factor: float, **_: Any) -> Frames:
    def change(frame: Frames) -> NDArray[Any]:
        smooth = frame.copy()  # Pillow leaves the edge as it is
        smooth[1:-1, 1:-1] = cv2.filter2D(frame, -1, SMOOTH)[1:-1, 1:-1]
        return cv2.addWeighted(frame, factor, smooth, 1 - factor, 0)

    return _stacked(frames, change)


def _auto_contrast(frames: Frames, **_: Any) -> Frames:
    def levels(histogram: NDArray[np.int64]) -> NDArray[Any]:
        used = histogram.nonzero()[0]
        low, high = used[0], used[-1]
        return GREY_LEVELS if high <= low else (GREY_LEVELS - low) * (255.0 / (high - low))

    return _by_histogram(frames, levels)


def _equalize(frames: Frames, **_: Any) -> Frames:
    def levels(histogram: NDArray[np.int64]) -> NDArray[Any]:
        used = histogram[histogram > 0]
        step = int(used.sum() - used[-1]) // 255
        below = np.cumsum(histogram) - histogram
        return GREY_LEVELS if len(used) <= 1 or not step else (step // 2 + below) // step

    return _by_histogram(frames, levels)


def _by_histogram(frames: Frames, levels: Callable[[NDArray[np.int64]], NDArray[Any]]) -> Frames:
    """Every channel of every frame looked up in a table made from its histogram."""

    def change(frame: Frames) -> NDArray[Any]:
        counts = [cv2.calcHist([frame], [channel], None, [256], [0, 256])[:, 0].astype(np.int64) for channel in range(3)]
        tables = np.stack([_table(levels(count)) for count in counts], axis=-1)  # (256, 3)
        return cv2.LUT(frame, tables[None])

    return _stacked(frames, change)


def _looked_up(frames: Frames, levels: NDArray[Any]) -> Frames:
    tall = frames.reshape(-1, *frames.shape[2:])  # (T, H, W, 3) -> (T H, W, 3)
    return np.asarray(cv2.LUT(tall, _table(levels)), np.uint8).reshape(frames.shape)


def _table(levels: NDArray[Any]) -> Frames:
    """A look-up table from levels of any type, cut off to 0-255 and towards zero, as Pillow does it."""
    return np.clip(levels, 0, 255).astype(np.uint8)


def _stacked(frames: Frames, change: Callable[[Frames], NDArray[Any]]) -> Frames:
    return np.stack([np.asarray(change(frame), np.uint8) for frame in frames])


OPERATIONS: dict[str, Callable[..., Frames]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotate": _rotate,
    "Posterize": _posterize,
    "PosterizeIncreasing": _posterize,
    "PosterizeOriginal": _posterize,
    "Solarize": _solarize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _color,
    "ColorIncreasing": _color,
    "Contrast": _contrast,
    "ContrastIncreasing": _contrast,
    "Brightness": _brightness,
    "BrightnessIncreasing": _brightness,
    "Sharpness": _sharpness,
    "SharpnessIncreasing": _sharpness,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateXRel": _translate_x,
    "TranslateYRel": _translate_y,
}
