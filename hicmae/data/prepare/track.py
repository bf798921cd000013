"""One person through a clip: the face to follow among those found, and its place in every frame, smoothed over time.

T frames; detections exist for some of them only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, median_filter

from hicmae.data.prepare.faces import Face

SWITCH = 4.0  # what changing to another person costs: as much as being seen in this many frames is worth
LOOK_BACK = 10  # frames with faces that the person may be missing in while others are seen
JUMP = 1.0  # of the face's size between two looks: another person or another shot, nothing to smooth over
OUTLIER = 0.2  # of the face's size, or radians, from the median of three looks: a single bad find
PLACE_S, SHAPE_S = 0.12, 0.5  # how far the smoothing reaches (standard deviation), place and size or tilt
Row = NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """A frame that was examined and the faces in it."""

    frame: int
    faces: list[Face]


def follow(looks: Sequence[Look], width: int, height: int) -> list[tuple[int, Face]]:
    """The person to follow, as (frame, face): large, central and without jumps, in total over the clip.

    The best chain of faces by dynamic programming: every face is worth its size and centrality, every step costs as much as
    the face moved, at most SWITCH, so that a second person is followed only where the first is gone for long or the shot changes.
    """
    largest = max((face.size for look in looks for face in look.faces), default=0.0)
    rows: list[list[_Link]] = []  # one for every look with faces
    for look in looks:
        if look.faces:
            earlier = [link for row in rows[-LOOK_BACK:] for link in row]
            rows.append([_link(earlier, look.frame, face, _worth(face, largest, width, height)) for face in look.faces])
    link = max((link for row in rows for link in row), key=lambda link: link.value, default=None)
    path = []
    while link is not None:
        path.append((link.frame, link.face))
        link = link.before
    return path[::-1]


@dataclass(frozen=True)
class _Link:
    """The best chain that ends in this face."""

    value: float
    frame: int
    face: Face
    before: _Link | None


def _link(earlier: Sequence[_Link], frame: int, face: Face, worth: float) -> _Link:
    values = [link.value - SWITCH * min(1.0, moved(link.face, face)) ** 2 for link in earlier]
    best = max(range(len(values)), key=values.__getitem__, default=-1)
    if best < 0 or values[best] <= 0:
        return _Link(worth, frame, face, None)
    return _Link(values[best] + worth, frame, face, earlier[best])


def _worth(face: Face, largest: float, width: int, height: int) -> float:
    """In (0, 1]: size against the largest of the clip, down to half at the corner of the frame."""
    off_centre = math.hypot(face.x / width - 0.5, face.y / height - 0.5) / math.hypot(0.5, 0.5)
    return face.size / largest * (1 - 0.5 * off_centre)


def moved(face: Face, other: Face) -> float:
    """How far apart two faces are in place and size, in sizes of the smaller one."""
    apart = math.hypot(face.x - other.x, face.y - other.y) / min(face.size, other.size)
    return apart + abs(math.log(face.size / other.size))


def longest_gap(path: Sequence[tuple[int, Face]], frame_count: int) -> int:
    """The most frames in a row, from one look at the face to the next or to the clip's ends, that have to be bridged."""
    seen = [-1, *(frame for frame, _ in path), frame_count]
    return max(after - before - 1 for before, after in pairwise(seen))


def smooth(path: Sequence[tuple[int, Face]], frame_count: int, fps: float) -> Row:
    """Centre x, centre y, size and angle of the face in every frame: (T, 4).

    Between examined frames the place is interpolated, before the first and after the last it stands still. Across a jump
    nothing is mixed: the crop changes at once, half-way between the two looks.
    """
    bounds = [0, *((a[0] + b[0] + 1) // 2 for a, b in pairwise(path) if moved(a[1], b[1]) > JUMP), frame_count]
    pieces = []
    for start, end in pairwise(bounds):
        inside = [(frame, face) for frame, face in path if start <= frame < end]
        pieces.append(_smooth_piece(inside, np.arange(start, end), fps))
    return np.concatenate(pieces)


def _smooth_piece(path: Sequence[tuple[int, Face]], frames: NDArray[np.int64], fps: float) -> Row:
    looks = np.asarray([frame for frame, _ in path])
    rows = np.asarray([(face.x, face.y, face.size, face.angle) for _, face in path])
    rows[:, 3] = np.unwrap(rows[:, 3])
    usual = median_filter(rows, size=(3, 1), mode="nearest")
    limit = OUTLIER * np.column_stack([usual[:, 2], usual[:, 2], usual[:, 2], np.ones(len(usual))])
    rows = np.where(np.abs(rows - usual) > limit, usual, rows)
    columns = [np.interp(frames, looks, column) for column in rows.T]
    reach = (PLACE_S, PLACE_S, SHAPE_S, SHAPE_S)
    return np.stack([gaussian_filter1d(c, s * fps, mode="nearest") for c, s in zip(columns, reach, strict=True)], axis=1)
