"""The last changes of frames, from bytes to what the model sees: normalised, flipped, erased.

In a worker they are made clip by clip, straight into the batch (`finish_clip`). For a GPU the workers send bytes, a quarter of
the memory and of the copying, and the changes are made there for the whole batch (`packed`, `finish_batch`). Both give the same
bits: what is drawn by chance is drawn in the worker, and the arithmetic is one subtraction and one product per pixel.

Legend: B batch, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ON_THE_WAY = ("flipped", "erased", "noise")  # entries of a batch that `finish_batch` uses up
Frames = NDArray[np.uint8]  # (T, H, W, 3)


@dataclass(frozen=True)
class Ending:
    """What is left to do to a clip: a mirror image, and a box that takes noise (3, T, height, width) after that."""

    flipped: bool = False
    top: int = 0
    left: int = 0
    noise: Tensor | None = None

    def box(self) -> tuple[int, int, int, int]:
        """Top, left, height and width of what is erased; height and width 0 where nothing is."""
        return (self.top, self.left, *self.noise.shape[2:]) if self.noise is not None else (0, 0, 0, 0)


@cache
def _tables() -> tuple[NDArray[np.float32], ...]:
    """What every byte becomes, by colour."""
    bytes_ = torch.arange(256, dtype=torch.float32).repeat(3, 1)
    return tuple(row.numpy() for row in _normalise(bytes_.view(1, 3, 256))[0])


def _normalise(values: Tensor) -> Tensor:
    """Values (B, 3, ...) of 0 to 255, in place, with ImageNet's mean and deviation."""
    for colour, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        values[:, colour].sub_(255 * mean).mul_(1 / (255 * std))
    return values


def normalise(frames: Frames, video: Tensor, flipped: bool = False) -> None:
    """Write uint8 (T, H, W, 3) into float32 `video` (3, T, H, W), contiguous, by looking the bytes up; mirrored if `flipped`.

    Frame by frame through three planes that are used again: they stay in the processor's cache, which is four times as fast.
    """
    planes = tuple(np.empty(frames.shape[1:3], np.uint8) for _ in range(3))
    values = video.numpy()
    for number, frame in enumerate(frames):
        cv2.split(np.ascontiguousarray(frame), planes)  # (H, W, 3) -> 3 (H, W)
        for colour, (plane, table) in enumerate(zip(planes, _tables(), strict=True)):
            cv2.LUT(cv2.flip(plane, 1) if flipped else plane, table, values[colour, number])


def finish_clip(frames: Frames, ending: Ending, video: Tensor) -> None:
    """Write a clip (T, H, W, 3) as the model sees it into `video` (3, T, H, W) float32."""
    normalise(frames, video, ending.flipped)
    if ending.noise is not None:
        top, left, height, width = ending.box()
        video[..., top : top + height, left : left + width] = ending.noise


def packed(frames: Sequence[Frames], endings: Sequence[Ending]) -> dict[str, Tensor]:
    """The clips of a batch as bytes: video (B, T, H, W, 3) uint8, flipped (B,), erased (B, 4), noise of all boxes in a row."""
    noise = [ending.noise.flatten() for ending in endings if ending.noise is not None]
    return {
        "video": torch.from_numpy(np.stack(frames)),
        "flipped": torch.tensor([ending.flipped for ending in endings]),
        "erased": torch.tensor([ending.box() for ending in endings]),
        "noise": torch.cat(noise) if noise else torch.zeros(0),
    }


def finish_batch(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A packed batch on the device with `video` (B, 3, T, H, W) float32 as the model sees it."""
    moved = {key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value for key, value in batch.items()}
    if "video" not in moved:
        return moved
    colours_first = moved["video"].permute(0, 4, 1, 2, 3)  # (B, T, H, W, 3) -> (B, 3, T, H, W)
    video = _normalise(colours_first.to(torch.float32, memory_format=torch.contiguous_format))
    if batch["flipped"].any():
        video = torch.where(moved["flipped"].view(-1, 1, 1, 1, 1), video.flip(-1), video)
    used = 0
    for row, (top, left, height, width) in enumerate(batch["erased"].tolist()):
        size = (3, video.shape[2], height, width)
        count = 3 * video.shape[2] * height * width
        video[row, ..., top : top + height, left : left + width] = moved["noise"][used : used + count].view(size)
        used += count
    return {key: value for key, value in moved.items() if key not in ON_THE_WAY} | {"video": video}
