"""Training-time changes of a clip's frames, each drawn once and applied alike to all frames.

As in the authors' release: GroupMultiScaleCrop of transforms.py, the random resized crop of video_transforms.py, timm's
RandAugment, horizontal flip, and random erasing with pixel noise in one box through all frames. Mixing of clips and labels is
the training loop's. Frames stay uint8 with the colours last until finish.py makes them what the model sees.

Legend: T frames, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hicmae.config import AugmentConfig
from hicmae.data.finish import Ending
from hicmae.data.rand_augment import Frames, rand_augment

MAX_DISTORTION = 1  # sides of a crop are neighbours among the scales
SNAP_PX = 3  # a side within this of the input size takes the input size
SIDE_CROP = 0.875
CROP_ASPECT, CROP_TRIES = (0.75, 1.3333), 10  # of a random resized crop, as in the release
ERASED_AREA, ERASED_ASPECT, ERASE_TRIES = (0.02, 1 / 3), (0.3, 1 / 0.3), 100
NOISE_LEVELS = 1 << 16


def multi_scale_crop(frames: Frames, size_px: int, scales: Sequence[float], random: np.random.Generator) -> Frames:
    """One of the scales for height and width, at one of 13 fixed places, resized to (T, size_px, size_px, 3)."""
    if not scales:
        return resized(frames, size_px)
    height, width = frames.shape[1:3]
    sides = [int(min(height, width) * scale) for scale in scales]
    sides = [size_px if abs(side - size_px) < SNAP_PX else side for side in sides]
    near = [(i, j) for i in range(len(sides)) for j in range(len(sides)) if abs(i - j) <= MAX_DISTORTION]
    row, column = near[random.integers(len(near))]
    crop_height, crop_width = min(sides[row], height), min(sides[column], width)
    steps_down, steps_right = _PLACES[random.integers(len(_PLACES))]
    top, left = steps_down * ((height - crop_height) // 4), steps_right * ((width - crop_width) // 4)
    return resized(frames[:, top : top + crop_height, left : left + crop_width], size_px)


# Quarters of the way down and to the right: corners, centre, middles of the sides, centres of the quadrants.
_PLACES = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3))


def random_resized_crop(frames: Frames, size_px: int, area: Sequence[float], random: np.random.Generator) -> Frames:
    """A box of a random share of the frame and a random shape, anywhere, resized to (T, size_px, size_px, 3).

    As in the release's fine-tuning (kinetics_av.py, `spatial_sampling`; area 0.08 to 1). Where no box fits, the middle square.
    """
    height, width = frames.shape[1:3]
    for _ in range(CROP_TRIES):
        share = random.uniform(area[0], area[1]) * height * width
        aspect = _log_uniform(random, *CROP_ASPECT)
        box_height, box_width = round(math.sqrt(share / aspect)), round(math.sqrt(share * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = (int(random.integers(rest + 1)) for rest in (height - box_height, width - box_width))
            return resized(frames[:, top : top + box_height, left : left + box_width], size_px)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resized(frames[:, top : top + side, left : left + side], size_px)


def side_crop(frames: Frames, side: int) -> Frames:
    """The left (0), middle (1) or right (2) square of 7/8 of the height of (T, H, W, 3), as in three-crop testing."""
    height, width = frames.shape[1:3]
    size = round(min(height, width) * SIDE_CROP)
    top, left = (height - size) // 2, side * (width - size) // 2
    return frames[:, top : top + size, left : left + size]


def resized(frames: Frames, size_px: int) -> Frames:
    """(T, H, W, 3) uint8 to (T, size_px, size_px, 3), bilinear with antialiasing as Pillow does it."""
    if frames.shape[1:3] == (size_px, size_px):
        return frames
    channels_first = torch.from_numpy(frames).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(channels_first, (size_px, size_px), mode="bilinear", antialias=True)
    return np.asarray(small.permute(0, 2, 3, 1).numpy())


def augment(
    frames: Frames, size_px: int, config: AugmentConfig, random: np.random.Generator, seed_parts: Sequence[int | str]
) -> tuple[Frames, Ending]:
    """A training clip (T, H, W, 3) at the size of the input, and what is done to it when its pixels are floats."""
    if config.rand_augment:
        frames = rand_augment(frames, config.rand_augment, seed_parts, config.interpolation)
    if config.crop == "random_resized":
        frames = random_resized_crop(frames, size_px, config.crop_area, random)
    else:
        frames = multi_scale_crop(frames, size_px, config.crop_scales, random)
    flipped = bool(config.flip and random.random() < 0.5)
    if config.random_erasing and random.random() < config.random_erasing:
        return frames, erasing(len(frames), size_px, flipped, random)
    return frames, Ending(flipped)


def erasing(frame_count: int, size_px: int, flipped: bool, random: np.random.Generator) -> Ending:
    """One box for all frames, filled with normal noise: timm's RandomErasing with mode pixel on a cube of frames."""
    for _ in range(ERASE_TRIES):
        area = random.uniform(*ERASED_AREA) * size_px * size_px
        aspect = _log_uniform(random, *ERASED_ASPECT)
        box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if box_height < size_px and box_width < size_px:
            top, left = (int(random.integers(rest + 1)) for rest in (size_px - box_height, size_px - box_width))
            return Ending(flipped, top, left, _noise((3, frame_count, box_height, box_width), random))
    return Ending(flipped)


@cache
def _normal_levels() -> NDArray[np.float32]:
    """65,536 equally likely values of a standard normal distribution, ascending."""
    from scipy.special import ndtri

    return np.asarray(ndtri((np.arange(NOISE_LEVELS) + 0.5) / NOISE_LEVELS), np.float32)


def _noise(size: tuple[int, ...], random: np.random.Generator) -> Tensor:
    """Normal noise to 16 bits, looked up: drawing exact normal numbers takes four times as long, and most of erasing."""
    return torch.from_numpy(_normal_levels().take(random.integers(NOISE_LEVELS, size=size, dtype=np.uint16)))


def _log_uniform(random: np.random.Generator, low: float, high: float) -> float:
    return math.exp(random.uniform(math.log(low), math.log(high)))


def gain(random: np.random.Generator) -> float:
    """The loudness factor of the release's `_roll_mag_aug`: between 0.5 and 1.5, mostly near 1."""
    return 0.5 + float(random.beta(10, 10))
