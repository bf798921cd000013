"""A part of a longer video as if it were a clip of its own: a stretch of time, and one half of the picture.

IEMOCAP has its pictures as whole dialogues of two people side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hicmae.data.clips import Frames, open_frames
from hicmae.data.corpora.base import Part
from hicmae.errors import ClipError


class PartOfVideo:
    """The frames that begin within a part's time, cut to its half. Raises ClipError when there is none."""

    def __init__(self, part: Part) -> None:
        self.path, self._side = part.video, part.side
        self._whole = open_frames(part.video)
        times = self._whole.times_s()
        if times is None:
            raise ClipError(part.video, "a folder of pictures has no times to cut by; give the video")
        self._first, end = np.searchsorted(times[:-1], [part.start_s, part.end_s]).tolist()
        if self._first == end:
            raise ClipError(part.video, f"no frames from {part.start_s:g} to {part.end_s:g} s; the video ends at {times[-1]:g} s")
        self._times = times[self._first : end + 1] - times[self._first]

    def __len__(self) -> int:
        return len(self._times) - 1

    def times_s(self) -> NDArray[np.float32]:
        return self._times

    def read(self, indices: Sequence[int]) -> list[Frames]:
        return [self._half(frame) for frame in self._whole.read([self._first + index for index in indices])]

    def _half(self, frame: Frames) -> Frames:
        middle = frame.shape[1] // 2
        return frame[:, :middle] if self._side == "left" else frame[:, middle:]
