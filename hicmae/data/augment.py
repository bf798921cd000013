"""Training-time changes of a clip's frames, each drawn once and applied alike to all frames.

As in the authors' release: GroupMultiScaleCrop of transforms.py, timm's RandAugment, horizontal flip, and random erasing with
pixel noise in one box through all frames. Mixing of clips and labels is the training loop's.

Legend: T frames, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hicmae.config import AugmentConfig
from hicmae.data.rand_augment import Frames, rand_augment

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_DISTORTION = 1  # sides of a crop are neighbours among the scales
SNAP_PX = 3  # a side within this of the input size takes the input size
SIDE_CROP = 0.875
ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)


def normalise(frames: Tensor, video: Tensor) -> None:
    """Write uint8 (T, 3, H, W) into float32 `video` (3, T, H, W), with ImageNet's mean and deviation."""
    video.copy_(frames.transpose(0, 1))  # (T, 3, ..) -> (3, T, ..)
    for channel, mean, std in zip(video, IMAGENET_MEAN, IMAGENET_STD, strict=True):
        channel.sub_(255 * mean).mul_(1 / (255 * std))


def channels_first(frames: Frames) -> Tensor:
    """(T, H, W, 3) array to a (T, 3, H, W) tensor, uint8."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def multi_scale_crop(frames: Tensor, size_px: int, scales: Sequence[float], random: np.random.Generator) -> Tensor:
    """One of the scales for height and width, at one of 13 fixed places, resized to (T, 3, size_px, size_px), uint8."""
    if not scales:
        return resized(frames, size_px)
    height, width = frames.shape[-2:]
    sides = [int(min(height, width) * scale) for scale in scales]
    sides = [size_px if abs(side - size_px) < SNAP_PX else side for side in sides]
    near = [(i, j) for i in range(len(sides)) for j in range(len(sides)) if abs(i - j) <= MAX_DISTORTION]
    row, column = near[random.integers(len(near))]
    crop_height, crop_width = min(sides[row], height), min(sides[column], width)
    steps_down, steps_right = _PLACES[random.integers(len(_PLACES))]
    top, left = steps_down * ((height - crop_height) // 4), steps_right * ((width - crop_width) // 4)
    return resized(frames[..., top : top + crop_height, left : left + crop_width], size_px)


# Quarters of the way down and to the right: corners, centre, middles of the sides, centres of the quadrants.
_PLACES = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3))


def side_crop(frames: Tensor, side: int) -> Tensor:
    """The left (0), middle (1) or right (2) square of 7/8 of the height of (T, 3, H, W), as in three-crop testing."""
    height, width = frames.shape[-2:]
    size = round(min(height, width) * SIDE_CROP)
    top, left = (height - size) // 2, side * (width - size) // 2
    return frames[..., top : top + size, left : left + size]


def resized(frames: Tensor, size_px: int) -> Tensor:
    """(T, 3, H, W) uint8 to (T, 3, size_px, size_px), bilinear with antialiasing as Pillow does it."""
    if frames.shape[-2:] == (size_px, size_px):
        return frames
    return torch.nn.functional.interpolate(frames, (size_px, size_px), mode="bilinear", antialias=True)


def erase(video: Tensor, random: np.random.Generator) -> None:
    """Overwrite one box of (3, T, H, W) in all frames with normal noise, in place."""
    channels, frames, height, width = video.shape
    for _ in range(100):
        area = random.uniform(*ERASED_AREA) * height * width
        aspect = math.exp(random.uniform(math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1])))
        box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if box_height < height and box_width < width:
            top, left = (int(random.integers(rest + 1)) for rest in (height - box_height, width - box_width))
            noise = random.standard_normal((channels, frames, box_height, box_width), dtype=np.float32)
            video[..., top : top + box_height, left : left + box_width] = torch.from_numpy(noise)
            return


def augment(
    frames: Frames, video: Tensor, config: AugmentConfig, random: np.random.Generator, seed_parts: Sequence[int | str]
) -> None:
    """Write a training clip (T, H, W, 3) uint8 as the model sees it into `video` (3, T, size, size) float32, normalised."""
    if config.rand_augment:
        frames = rand_augment(frames, config.rand_augment, seed_parts)
    picture = multi_scale_crop(channels_first(frames), video.shape[-1], config.crop_scales, random)
    if config.flip and random.random() < 0.5:
        picture = picture.flip(-1)
    normalise(picture, video)
    if config.random_erasing and random.random() < config.random_erasing:
        erase(video, random)


def gain(random: np.random.Generator) -> float:
    """The loudness factor of the release's `_roll_mag_aug`: between 0.5 and 1.5, mostly near 1."""
    return 0.5 + float(random.beta(10, 10))
