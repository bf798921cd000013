"""Anti-aliased vector drawing of moving shapes: curves and strokes as polygons over time, painted with Pillow.

A picture is a list of filled shapes in painting order; each is drawn at SUPERSAMPLE times the size and averaged down.
Shapes: T frames, P points of an outline, C control points. Heads are drawn in units of half a head: x to the right,
y down, z towards the viewer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hicmae.data.synthetic.script import Array

Colour: TypeAlias = tuple[int, int, int]
SUPERSAMPLE = 4


@dataclass(frozen=True)
class Shape:
    """A filled outline (T, P, 2) in pixels."""

    outline: Array
    colour: Colour


@dataclass(frozen=True)
class Pose:
    """Where a head is and how it turns, each (T,): position in pixels of the finished picture, angles in radians."""

    x_px: Array
    y_px: Array
    scale_px: float  # half a head
    yaw: Array
    pitch: Array
    roll: Array

    def project(self, points: Array) -> Array:
        """Points of the head (T, P, 3) to pixels (T, P, 2), without perspective."""
        x, y, z = (points[..., axis] for axis in range(3))
        yaw, tilt, roll = self.yaw[:, None], self.pitch[:, None], self.roll[:, None]
        x, z = x * np.cos(yaw) + z * np.sin(yaw), z * np.cos(yaw) - x * np.sin(yaw)
        y = y * np.cos(tilt) + z * np.sin(tilt)
        turned = np.stack([x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)], axis=-1)
        return turned * self.scale_px + np.stack([self.x_px, self.y_px], axis=-1)[:, None]


def still(points: Iterable[tuple[float, float]], frames: int, depth: float) -> Array:
    """Points that do not move by themselves, (T, P, 3) at one depth."""
    flat = np.array([(x, y, depth) for x, y in points], dtype=np.float64)
    return np.repeat(flat[None], frames, axis=0)


def closed(points: Array, per_segment: int = 5) -> Array:
    """A smooth closed curve through control points: (T, C, 2 or 3) to (T, C * per_segment, 2 or 3) by Catmull and Rom."""
    count = points.shape[1]
    corners = np.stack([np.roll(points, 1 - shift, axis=1) for shift in range(4)])  # before, here, next, after
    return _catmull_rom(corners, per_segment).reshape(len(points), count * per_segment, -1)


def opened(points: Array, per_segment: int = 6) -> Array:
    """A smooth open curve through control points: (T, C, D) to (T, (C - 1) * per_segment + 1, D)."""
    first, last = 2 * points[:, :1] - points[:, 1:2], 2 * points[:, -1:] - points[:, -2:-1]
    padded = np.concatenate([first, points, last], axis=1)
    segments = points.shape[1] - 1
    corners = np.stack([padded[:, shift : shift + segments] for shift in range(4)])
    curve = _catmull_rom(corners, per_segment).reshape(len(points), segments * per_segment, -1)
    return np.concatenate([curve, points[:, -1:]], axis=1)


def _catmull_rom(corners: Array, per_segment: int) -> Array:
    """(4, T, C, D) corners to (T, C, per_segment, D)."""
    t = np.arange(per_segment) / per_segment
    weights = 0.5 * np.stack([-(t**3) + 2 * t**2 - t, 3 * t**3 - 5 * t**2 + 2, -3 * t**3 + 4 * t**2 + t, t**3 - t**2])
    return np.einsum("ks,ktcd->tcsd", weights, corners)


def oval(centre: Array, radius_x: float | Array, radius_y: float | Array, points: int = 20) -> Array:
    """An ellipse around (T, 3) centres, radii in head units (or (T,) of them): (T, points, 3)."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    outline = np.repeat(centre[:, None], points, axis=1)
    outline[..., 0] += np.atleast_1d(radius_x)[:, None] * np.cos(angle)
    outline[..., 1] += np.atleast_1d(radius_y)[:, None] * np.sin(angle)
    return outline


def stroke(line: Array, widths_px: Array) -> Array:
    """A brush stroke along (T, P, 2), its width given at every point (P,): the outline (T, 2 P, 2)."""
    along = np.gradient(line, axis=1)
    along /= np.maximum(np.linalg.norm(along, axis=-1, keepdims=True), 1e-9)
    across = np.stack([-along[..., 1], along[..., 0]], axis=-1) * (widths_px / 2)[:, None]
    return np.concatenate([line + across, (line - across)[:, ::-1]], axis=1)


def tapered(points: int, start: float, middle: float, end: float) -> Array:
    """Widths of a brush stroke that swells from start over middle to end, (points,)."""
    return np.interp(np.linspace(0, 2, points), [0, 1, 2], [start, middle, end])


def paint(shapes: list[Shape], background: NDArray[np.uint8], frames: int) -> NDArray[np.uint8]:
    """All frames (T, height, width, 3) over one background (height, width, 3)."""
    height, width = background.shape[:2]
    canvas = Image.fromarray(background).resize((width * SUPERSAMPLE, height * SUPERSAMPLE), Image.Resampling.BILINEAR)
    corners = [np.round(shape.outline * SUPERSAMPLE, 2).reshape(len(shape.outline), -1).tolist() for shape in shapes]
    painted = np.empty((frames, height, width, 3), np.uint8)
    for frame in range(frames):
        picture = canvas.copy()
        draw = ImageDraw.Draw(picture)
        for shape, outlines in zip(shapes, corners, strict=True):
            draw.polygon(outlines[frame], fill=shape.colour)
        painted[frame] = np.asarray(picture.reduce(SUPERSAMPLE))
    return painted


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """`share` of `other` in `one`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def shade(colour: Colour, factor: float) -> Colour:
    """Darker below 1, towards white above."""
    return mix((0, 0, 0), colour, factor) if factor <= 1 else mix(colour, (255, 255, 255), factor - 1)
