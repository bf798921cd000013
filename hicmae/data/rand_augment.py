"""timm's RandAugment on whole clips: timm draws operations and magnitudes, and each operation is applied to all frames at once.

timm works on one Pillow image at a time, which would take several times as long as all the rest of an example. Here its
operations are replaced by ones on arrays (T, H, W, 3) uint8, equal to Pillow's up to rounding. Turns, shears and shifts are
interpolated bilinearly, or as the release does, bicubically: that is left to Pillow, frame by frame, at ten times the cost.

Legend: T frames, H height, W width.
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
from hicmae.seeding import seeded_draws

Frames = NDArray[np.uint8]
FILL = (128, 128, 128)  # timm's colour of what comes in from outside
GREY_LEVELS = np.arange(256)
BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
INTERPOLATIONS: dict[str, Any] = {"bilinear": BILINEAR, "bicubic": BICUBIC, "random": (BILINEAR, BICUBIC)}  # drawn by operation
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's ImageFilter.SMOOTH


def rand_augment(frames: Frames, policy: str, seed_parts: Sequence[int | str], interpolation: str = "bilinear") -> Frames:
    """The same operations with the same magnitudes on every frame (T, H, W, 3). Raises UsageError for what timm refuses."""
    apply = _policy(policy, frames.shape[1], interpolation)
    with seeded_draws(*seed_parts):  # timm draws from the global state of random and numpy
        changed: Frames = apply(frames)
    return changed


@cache
def _policy(policy: str, size_px: int, interpolation: str) -> Callable[[Frames], Frames]:
    from timm.data.auto_augment import rand_augment_transform

    options = {"translate_const": int(size_px * 0.45), "interpolation": INTERPOLATIONS[interpolation]}
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


def _affine(frames: Frames, matrix: Sequence[float], resample: Any = BILINEAR, **_: Any) -> Frames:
    """Every pixel (x, y) comes from (a x + b y + c, d x + e y + f), pixels being squares, as in Pillow's Image.transform."""
    if isinstance(resample, Sequence):
        resample = python_random.choice(resample)  # noqa: S311 - as timm draws it
    if resample == BICUBIC:  # OpenCV's cubic is another one
        size = frames.shape[2], frames.shape[1]
        change = partial(
            Image.Image.transform, size=size, method=Image.Transform.AFFINE, data=matrix, resample=BICUBIC, fillcolor=FILL
        )
        return np.stack([np.asarray(change(Image.fromarray(frame))) for frame in frames])
    a, b, c, d, e, f = matrix
    centred = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    changed = np.empty_like(frames)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for frame, into in zip(frames, changed, strict=True):
        cv2.warpAffine(frame, centred, frames.shape[2:0:-1], dst=into, flags=flags, borderValue=FILL)
    return changed


def _rotate(frames: Frames, degrees: float, **options: Any) -> Frames:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y, x = frames.shape[1] / 2, frames.shape[2] / 2
    return _affine(frames, (cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y), **options)


def _shear_x(frames: Frames, factor: float, **options: Any) -> Frames:
    return _affine(frames, (1, factor, 0, 0, 1, 0), **options)


def _shear_y(frames: Frames, factor: float, **options: Any) -> Frames:
    return _affine(frames, (1, 0, 0, factor, 1, 0), **options)


def _translate_x(frames: Frames, share: float, **options: Any) -> Frames:
    return _affine(frames, (1, 0, share * frames.shape[2], 0, 1, 0), **options)


def _translate_y(frames: Frames, share: float, **options: Any) -> Frames:
    return _affine(frames, (1, 0, 0, 0, 1, share * frames.shape[1]), **options)


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
    grey = np.asarray(cv2.cvtColor(_tall(frames), cv2.COLOR_RGB2GRAY)).reshape(len(frames), -1)
    means = (grey.mean(-1) + 0.5).astype(int)
    changed = np.empty_like(frames)
    for frame, mean, into in zip(frames, means, changed, strict=True):
        cv2.LUT(frame, _table(mean + factor * (GREY_LEVELS - mean)), into)
    return changed


def _color(frames: Frames, factor: float, **_: Any) -> Frames:
    tall = _tall(frames)
    grey = cv2.cvtColor(cv2.cvtColor(tall, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(tall, factor, grey, 1 - factor, 0), np.uint8).reshape(frames.shape)


def _sharpness(frames: Frames, factor: float, **_: Any) -> Frames:
    tall = _tall(frames)
    smooth = np.asarray(cv2.filter2D(tall, -1, SMOOTH), np.uint8).reshape(frames.shape)
    for edge in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):  # Pillow leaves the edge as it is
        smooth[edge] = frames[edge]
    return np.asarray(cv2.addWeighted(tall, factor, _tall(smooth), 1 - factor, 0), np.uint8).reshape(frames.shape)


def _auto_contrast(frames: Frames, **_: Any) -> Frames:
    planes = _planes(frames)
    low, high = planes.min((-1, -2)).reshape(-1, 1), planes.max((-1, -2)).reshape(-1, 1)  # (T * 3, 1)
    stretched = (GREY_LEVELS - low.astype(int)) * (255.0 / np.maximum(high - low, 1))
    return _looked_up_by_plane(planes, np.where(high > low, stretched, GREY_LEVELS))


def _equalize(frames: Frames, **_: Any) -> Frames:
    planes = _planes(frames)
    flat = planes.reshape(-1, *planes.shape[2:])
    histograms = [cv2.calcHist([plane], [0], None, [256], [0, 256])[:, 0] for plane in flat]
    counts = np.stack(histograms).astype(np.int64)  # (T * 3, 256)
    pixels = counts.sum(-1, keepdims=True)
    brightest = np.take_along_axis(counts, flat.max((-1, -2)).astype(np.int64)[:, None], -1)
    step = (pixels - brightest) // 255
    levels = (step // 2 + np.cumsum(counts, -1) - counts) // np.maximum(step, 1)
    return _looked_up_by_plane(planes, np.where(step > 0, levels, GREY_LEVELS))


def _looked_up_by_plane(planes: Frames, levels: NDArray[Any]) -> Frames:
    """Every colour (T, 3, H, W) of every frame looked up in its own row of levels (T * 3, 256); (T, H, W, 3)."""
    count, colours, height, width = planes.shape
    for plane, table in zip(planes.reshape(-1, height, width), _table(levels), strict=True):
        cv2.LUT(plane, table, plane)
    changed = np.empty((count, height, width, colours), np.uint8)
    for frame, into in zip(planes, changed, strict=True):
        cv2.merge(tuple(frame), into)
    return changed


def _looked_up(frames: Frames, levels: NDArray[Any]) -> Frames:
    return np.asarray(cv2.LUT(_tall(frames), _table(levels)), np.uint8).reshape(frames.shape)


def _table(levels: NDArray[Any]) -> Frames:
    """Look-up tables from levels of any type, cut off to 0-255 and towards zero, as Pillow does it."""
    return np.clip(levels, 0, 255).astype(np.uint8)


def _tall(frames: Frames) -> Frames:
    """(T, H, W, 3) -> (T H, W, 3): all frames as one picture."""
    return frames.reshape(-1, *frames.shape[2:])


def _planes(frames: Frames) -> Frames:
    """(T, H, W, 3) -> (T, 3, H, W), frame by frame: what is split stays in the processor's cache."""
    planes = np.empty((len(frames), 3, *frames.shape[1:3]), np.uint8)
    for frame, into in zip(frames, planes, strict=True):
        cv2.split(frame, tuple(into))
    return planes


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
