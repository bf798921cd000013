"""One person through a clip: the face to follow among those found, and its place in every frame, smoothed over time.

T frames; detections exist for some of them only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, median_filter

from hicmae.data.prepare.faces import Face

SWITCH = 4.0  # what changing to another person costs: as much as being seen in this many frames is worth
LOOK_BACK = 10  # frames with faces that the person may be missing in while others are seen
JUMP = 1.0  # of the face's size between two looks: another person or another shot, nothing to smooth over
MEDIAN_LOOKS = 3  # single bad finds are dropped
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
    chains: list[list[tuple[float, int, Face, tuple[int, int] | None]]] = []  # per look with faces: value, frame, face, before
    for look in (look for look in looks if look.faces):
        row = []
        for face in look.faces:
            gain, before = max(_steps(chains, face), key=lambda step: step[0], default=(0.0, None))
            row.append((_worth(face, largest, width, height) + gain, look.frame, face, before))
        chains.append(row)
    ends = ((row[place][0], (number, place)) for number, row in enumerate(chains) for place in range(len(row)))
    _, link = max(ends, default=(0.0, None))
    path = []
    while link is not None:
        _, frame, face, link = chains[link[0]][link[1]]
        path.append((frame, face))
    return path[::-1]


def _steps(chains: list[list[tuple[float, int, Face, tuple[int, int] | None]]], face: Face) -> list[tuple[float, tuple[int, int]]]:
    """Value of every earlier face that this one could follow, less the step from there."""
    recent = range(max(0, len(chains) - LOOK_BACK), len(chains))
    links = [(number, place) for number in recent for place in range(len(chains[number]))]
    return [(chains[n][p][0] - SWITCH * min(1.0, moved(chains[n][p][2], face)) ** 2, (n, p)) for n, p in links]


def _worth(face: Face, largest: float, width: int, height: int) -> float:
    """In (0, 1]: size against the largest of the clip, down to half at the corner of the frame."""
    off_centre = math.hypot(face.x / width - 0.5, face.y / height - 0.5) / math.hypot(0.5, 0.5)
    return face.size / largest * (1 - 0.5 * off_centre)


def moved(face: Face, other: Face) -> float:
    """How far apart two faces are in place and size, in sizes of the smaller one."""
    apart = math.hypot(face.x - other.x, face.y - other.y) / min(face.size, other.size)
    return apart + abs(math.log(face.size / other.size))


def smooth(path: Sequence[tuple[int, Face]], frame_count: int, fps: float) -> Row:
    """Centre x, centre y, size and angle of the face in every frame: (T, 4).

    Between examined frames the place is interpolated, before the first and after the last it stands still. Across a jump
    nothing is mixed: the crop changes at once, half-way between the two looks.
    """
    bounds = [0, *((a[0] + b[0] + 1) // 2 for a, b in zip(path, path[1:], strict=False) if moved(a[1], b[1]) > JUMP), frame_count]
    pieces = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        inside = [(frame, face) for frame, face in path if start <= frame < end]
        pieces.append(_smooth_piece(inside, np.arange(start, end), fps))
    return np.concatenate(pieces)


def _smooth_piece(path: Sequence[tuple[int, Face]], frames: NDArray[np.int64], fps: float) -> Row:
    looks = np.asarray([frame for frame, _ in path])
    rows = np.asarray([(face.x, face.y, face.size, face.angle) for _, face in path])
    rows[:, 3] = np.unwrap(rows[:, 3])
    rows = median_filter(rows, size=(MEDIAN_LOOKS, 1), mode="nearest")
    columns = [np.interp(frames, looks, column) for column in rows.T]
    reach = (PLACE_S, PLACE_S, SHAPE_S, SHAPE_S)
    return np.stack([gaussian_filter1d(c, s * fps, mode="nearest") for c, s in zip(columns, reach, strict=True)], axis=1)
