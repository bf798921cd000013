"""A face as a list of shapes in painting order: what belongs to the person and how an expression changes it.

Valence shows in the mouth's corners, the brows, the lids, the cheeks and the furrow between the brows, nowhere else.
Shapes: T frames, P points of an outline, U points across a mouth or an eye; head units as in `drawing`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hicmae.data.synthetic.drawing import Colour, Pose, Shape, closed, mix, opened, oval, shade, still, stroke, tapered
from hicmae.data.synthetic.script import Array

Points = list[tuple[float, float]]
DARK: Colour = (44, 26, 26)
WHITE: Colour = (250, 247, 242)
ACROSS = np.linspace(-1, 1, 15)  # (U,)
STROKE = 0.03  # of half a head: the unit of a brush's width, about a pixel in a picture of 96


@dataclass(frozen=True)
class FaceIdentity:
    """What stays with a speaker; lengths in half heads."""

    skin: Colour
    hair: Colour
    iris: Colour
    clothes: Colour
    wall: Colour
    hair_style: str  # short, fringe, long, bun
    width: float
    jaw: float  # 1 is as wide as the skull, less is pointed
    eye_apart: float
    eye_size: float
    brow: float  # thickness in STROKE units
    nose: float
    mouth: float
    lips: float
    beard: bool
    glasses: bool


@dataclass(frozen=True)
class Face:
    """A speaker in the frames of one clip; all movements (T,). `valence` is about -1 or about 1 throughout."""

    who: FaceIdentity
    pose: Pose
    valence: Array
    opening: Array  # of the mouth, 0 to 1
    mouth_width: Array  # 1 at rest
    lids: Array  # 1 open, 0 shut
    gaze: Array
    light: float

    @property
    def smile(self) -> Array:
        return np.maximum(self.valence, 0)

    @property
    def frown(self) -> Array:
        return np.maximum(-self.valence, 0)

    def at(self, points: Points, depth: float) -> Array:
        """Points that move with the head, (T, P, 3)."""
        return still(points, len(self.valence), depth)

    @property
    def chin(self) -> Colour:
        """What is around the mouth: skin or beard."""
        return mix(self.who.skin, self.who.hair, 0.6) if self.who.beard else self.who.skin

    def fill(self, outline: Array, colour: Colour) -> Shape:
        return Shape(self.pose.project(outline), shade(colour, self.light))

    def line(self, points: Array, colour: Colour, widths: tuple[float, float, float]) -> Shape:
        """A brush stroke through (T, P, 3); widths at its start, middle and end in STROKE units."""
        unit = STROKE * self.pose.scale_px
        return Shape(stroke(self.pose.project(points), tapered(points.shape[1], *widths) * unit), shade(colour, self.light))


def symmetric(right: Points) -> Points:
    """An outline from its right half, given from top to bottom."""
    return [*right, *((-x, y) for x, y in reversed(right) if x)]


def portrait(face: Face) -> list[Shape]:
    """Everything in front of the wall, back to front."""
    eyes = [shape for sign in (-1, 1) for shape in [*_eye(face, sign), _brow(face, sign)]]
    shapes = [*_hair_behind(face), *_body(face), *_head(face), *_cheeks(face), *_beard(face)]
    return [*shapes, *_nose(face), *eyes, *_creases(face), *_mouth(face), *_hair(face), *_glasses(face)]


def _hair_behind(face: Face) -> list[Shape]:
    who = face.who
    if who.hair_style == "long":
        w = who.width
        mane = [(0.0, -1.14), (0.8 * w, -1.02), (w + 0.12, -0.55), (w + 0.17, 0.2), (w + 0.14, 0.9), (0.6 * w, 1.2)]
        return [face.fill(closed(face.at(symmetric(mane), -0.25)), shade(who.hair, 0.8))]
    if who.hair_style == "bun":
        knot = face.at([(0, -1.16)], -0.2)[:, 0]
        return [
            face.fill(oval(knot, 0.34, 0.28), shade(who.hair, 0.82)),
            face.fill(oval(knot, 0.24, 0.19), shade(who.hair, 0.95)),
        ]
    return []


def _body(face: Face) -> list[Shape]:
    """Shoulders that follow the head a little, and a neck."""
    who, pose = face.who, face.pose
    x = pose.x_px.mean() + 0.3 * (pose.x_px - pose.x_px.mean())
    y = pose.y_px.mean() + 0.2 * (pose.y_px - pose.y_px.mean())
    origin = np.stack([x, y], axis=-1)[:, None]  # (T, 1, 2)
    neck_width = 0.52 * who.width
    parts: list[tuple[Points, Colour]] = [
        ([(0.2, 1.1), (0.62, 1.2), (1.12, 1.34), (1.4, 1.7), (1.5, 2.4), (0.5, 2.6)], who.clothes),
        ([(neck_width, 1.08), (neck_width + 0.12, 1.2), (0.28, 1.5)], shade(who.clothes, 0.78)),
        ([(neck_width, 0.4), (neck_width, 1.0), (neck_width + 0.06, 1.17), (0.22, 1.43)], shade(who.skin, 0.9)),
        ([(neck_width, 0.4), (neck_width, 0.95), (0.25, 1.17)], shade(who.skin, 0.77)),
    ]
    return [
        Shape(origin + closed(face.at(symmetric(points), 0.0)[..., :2]) * pose.scale_px, shade(colour, face.light))
        for points, colour in parts
    ]


def _head(face: Face) -> list[Shape]:
    """Ears, then the face with light from the upper left."""
    who, shapes = face.who, []
    w, jaw = who.width, who.width * who.jaw
    for sign in (-1, 1):
        ear = face.at([(sign * (w + 0.02), 0.1)], -0.12)[:, 0]
        shapes += [face.fill(oval(ear, 0.1, 0.18), shade(who.skin, 0.88)), face.fill(oval(ear, 0.05, 0.1), shade(who.skin, 0.74))]
    side = [
        (0.0, -1.0),
        (0.52 * w, -0.93),
        (0.9 * w, -0.62),
        (w, -0.15),
        (0.97 * w, 0.25),
        (0.88 * jaw, 0.62),
        (0.52 * jaw, 0.92),
    ]
    skull = closed(face.at(symmetric([*side, (0.0, 1.0)]), 0.0))
    for layer in range(6):
        inset, shift = np.array([1 - 0.035 * layer, 1 - 0.03 * layer, 1.0]), np.array([-0.012 * layer, -0.014 * layer, 0.0])
        shapes.append(face.fill(skull * inset + shift, shade(who.skin, 0.88 + 0.026 * layer)))
    return shapes


def _cheeks(face: Face) -> list[Shape]:
    """Rosy, rounder and higher with a smile."""
    shapes = []
    for sign in (-1, 1):
        centre = face.at([(sign * 0.43, 0.33)], 0.15)[:, 0]
        centre[:, 1] -= 0.04 * face.smile
        for ring in range(5):
            size = np.minimum(face.smile, 1.1) * (1 - 0.19 * ring)
            shapes.append(face.fill(oval(centre, 0.22 * size, 0.18 * size), mix(face.who.skin, (236, 84, 84), 0.08 * (ring + 1))))
    return shapes if face.smile.any() else []


def _beard(face: Face) -> list[Shape]:
    """Along the jaw and around the mouth."""
    who = face.who
    if not who.beard:
        return []
    w, jaw = who.width, who.width * who.jaw
    right = [(0.0, 0.43), (0.22, 0.43), (0.4, 0.52), (0.66 * w, 0.42), (0.9 * w, 0.06), (w, 0.1), (0.9 * jaw, 0.62)]
    outline = symmetric([*right, (0.54 * jaw, 0.95), (0.0, 1.05)])
    return [face.fill(closed(face.at(outline, 0.02)), face.chin)]


def _nose(face: Face) -> list[Shape]:
    skin, long = face.who.skin, 0.33 * face.who.nose
    wings = opened(face.at([(-0.13, long - 0.06), (-0.1, long), (0.0, long + 0.03), (0.1, long), (0.13, long - 0.06)], 0.36))
    bridge = opened(face.at([(0.07, -0.14), (0.06, 0.08), (0.1, long - 0.08)], 0.3))
    tip = face.at([(-0.02, long - 0.09)], 0.42)[:, 0]
    return [
        face.line(bridge, shade(skin, 0.88), (0.6, 1.6, 2.2)),
        face.fill(oval(tip, 0.06, 0.05), shade(skin, 1.12)),
        face.line(wings, shade(skin, 0.68), (0.9, 1.5, 0.9)),
    ]


def _eye(face: Face, sign: int) -> list[Shape]:
    """An almond between two lids; iris, pupil and a glint are kept inside it."""
    who = face.who
    half, high = 0.165 * who.eye_size, 0.115 * who.eye_size
    centre = face.at([(sign * who.eye_apart, -0.03)], 0.2)[:, 0]
    lower = 0.75 * high * (1 - 0.4 * face.smile)
    upper = -high * (1 - 0.22 * face.frown) * face.lids + lower * (1 - face.lids)

    def lid(height: Array, across: Array) -> Array:
        """(T, P) heights of a lid at positions -1 to 1 (P,) or (T, P)."""
        return centre[:, 1:2] + height[:, None] * (1 - across**2) ** 0.8 - 0.025 * sign * across

    def inside(radius: float, x: Array | float, y: float) -> Array:
        """A disc (T, P, 3) cut off by the lids."""
        disc = oval(centre + np.stack(np.broadcast_arrays(x, y, np.zeros(len(centre))), axis=-1), radius, radius)
        across = np.clip((disc[..., 0] - centre[:, :1]) / half, -1, 1)
        disc[..., 0] = centre[:, :1] + across * half
        disc[..., 1] = np.clip(disc[..., 1], lid(upper, across), np.maximum(lid(lower, across), lid(upper, across)))
        return disc

    x = centre[:, :1] + half * ACROSS
    top, bottom = (_lines(x, lid(height, ACROSS), 0.2) for height in (upper, lower))
    gaze, iris = 0.025 * face.gaze, 0.1 * who.eye_size
    return [
        face.fill(np.concatenate([top, bottom[:, ::-1]], axis=1), WHITE),
        face.fill(inside(iris, gaze, 0.0), who.iris),
        face.fill(inside(iris * 0.55, gaze, 0.0), (22, 16, 16)),
        face.fill(inside(iris * 0.3, gaze - 0.035, -0.035), WHITE),
        face.line(bottom, shade(who.skin, 0.66), (0.5, 0.8, 0.5)),
        face.line(top, DARK, (0.9, 1.7, 0.9)),
        face.line(_lines(x, lid(upper * 0.6 - 0.085, ACROSS), 0.2), shade(who.skin, 0.76), (0.3, 0.8, 0.3)),
    ]


def _brow(face: Face, sign: int) -> Shape:
    """High and arched in a smile; drawn together and down in a frown."""
    line = face.at([(sign * 0.15, -0.3), (sign * 0.35, -0.37), (sign * 0.55, -0.28)], 0.22)
    line[..., 1] -= face.smile[:, None] * np.array([0.06, 0.1, 0.04])
    line[..., 1] += face.frown[:, None] * np.array([0.15, 0.04, -0.06])
    line[..., 0] -= sign * face.frown[:, None] * np.array([0.05, 0.02, 0.0])
    thick = face.who.brow
    return face.line(opened(line), shade(face.who.hair, 0.8), (0.7 * thick, thick, 0.5))


def _creases(face: Face) -> list[Shape]:
    """Folds beside a smile; a furrow between the brows and lines below the corners of a frown."""
    skin, shapes = shade(face.who.skin, 0.78), []
    for sign in (-1, 1):
        if face.smile.any():
            fold = face.at([(sign * 0.2, 0.33), (sign * 0.4, 0.42), (sign * 0.46, 0.56)], 0.2)
            shapes.append(face.line(opened(fold), skin, (0.4, 1.1, 0.4)))
        else:
            furrow = face.at([(sign * 0.06, -0.3), (sign * 0.05, -0.13)], 0.25)
            below = face.at([(sign * 0.33, 0.75), (sign * 0.35, 0.85)], 0.15)
            shapes += [
                face.line(opened(furrow), skin, (0.5, 1.2, 0.5)),
                face.line(opened(below), shade(face.chin, 0.78), (1.0, 0.8, 0.3)),
            ]
    return shapes


def _mouth(face: Face) -> list[Shape]:
    """Lips, and between them the dark, teeth and tongue; corners up or down."""
    who, v = face.who, face.valence[:, None]  # (T, 1)
    bulge = (1 - ACROSS**2) ** 0.7  # (U,)
    x = who.mouth * face.mouth_width[:, None] * (1.04 + 0.2 * v) * ACROSS  # (T, U)
    middle = 0.61 + 0.07 * v - 0.2 * v * ACROSS**2
    gap = (0.26 * face.opening + 0.07 * face.smile)[:, None] * bulge
    upper, lower = middle - 0.3 * gap, middle + 0.7 * gap
    bow = 1 - 0.3 * np.exp(-((ACROSS / 0.16) ** 2))
    depth = 0.26 - 0.1 * ACROSS**2

    def between(top: Array, bottom: Array) -> Array:
        return np.concatenate([_lines(x, top, depth), _lines(x, bottom, depth)[:, ::-1]], axis=1)

    red = mix(who.skin, (178, 62, 70), 0.55)
    lip_top, lip_bottom = upper - 0.075 * who.lips * bulge * bow, lower + 0.1 * who.lips * bulge
    shadow = _lines(x[:, 4:-4], lip_bottom[:, 4:-4] + 0.05, 0.24)
    return [
        face.line(shadow, shade(face.chin, 0.84), (0.3, 1.4, 0.3)),
        face.fill(between(lip_top, lower), shade(red, 0.9)),
        face.fill(between(upper, lip_bottom), red),
        face.fill(between(upper, lower), (74, 22, 28)),
        face.fill(between(np.maximum(lower - 0.09 * bulge, upper + 0.55 * (lower - upper)), lower), (190, 86, 92)),
        face.fill(between(upper, np.minimum(upper + 0.1 * face.smile[:, None] * bulge, lower)), (246, 243, 236)),
        face.line(_lines(x, upper, depth), shade(red, 0.5), (1.1, 0.8, 1.1)),
    ]


def _hair(face: Face) -> list[Shape]:
    """The hair that frames the forehead, and light on it."""
    who, w = face.who, face.who.width
    outer = [(0.0, -1.14), (0.62 * w, -1.07), (1.02 * w, -0.72)]
    fronts: dict[str, Points] = {
        "short": [(w + 0.03, -0.25), (w - 0.06, -0.2), (0.84 * w, -0.52), (0.5 * w, -0.7), (0.0, -0.66)],
        "fringe": [(w + 0.04, -0.1), (w - 0.07, -0.1), (0.8 * w, -0.44), (0.4 * w, -0.52), (0.0, -0.55)],
        "long": [(w + 0.13, -0.2), (w + 0.14, 0.55), (w + 0.0, 0.75), (0.93 * w, -0.1), (0.5 * w, -0.66), (0.0, -0.84)],
        "bun": [(w + 0.02, -0.25), (w - 0.04, -0.2), (0.86 * w, -0.56), (0.45 * w, -0.78), (0.0, -0.82)],
    }
    outline = face.at(symmetric([*outer, *fronts[who.hair_style]]), 0.02)
    shapes = [face.fill(closed(outline), who.hair)]
    for ring in range(3):
        gleam = opened(face.at([(-0.82 * w, -0.76), (-0.5 * w, -0.94), (0.1 * w, -1.0)], 0.03))
        shapes.append(face.line(gleam, shade(who.hair, 1.04 + 0.04 * ring), (0.3, 4.5 - 1.5 * ring, 0.3)))
    return shapes


def _glasses(face: Face) -> list[Shape]:
    who = face.who
    if not who.glasses:
        return []
    shapes = []
    for sign in (-1, 1):
        rim = oval(face.at([(sign * who.eye_apart, -0.0)], 0.3)[:, 0], 0.225, 0.185, points=24)
        temple = face.at([(sign * (who.eye_apart + 0.22), -0.04), (sign * (who.width + 0.02), -0.02)], 0.1)
        rim = np.concatenate([rim, rim[:, :1]], axis=1)
        shapes += [face.line(rim, (52, 46, 50), (0.9, 0.9, 0.9)), face.line(temple, (52, 46, 50), (0.9, 0.9, 0.9))]
    inner = who.eye_apart - 0.22
    return [
        *shapes,
        face.line(opened(face.at([(-inner, -0.03), (0, -0.07), (inner, -0.03)], 0.34)), (52, 46, 50), (0.9, 0.9, 0.9)),
    ]


def _lines(x: Array, y: Array, depth: Array | float) -> Array:
    """(T, P) coordinates to (T, P, 3) points."""
    return np.stack(np.broadcast_arrays(x, y, depth), axis=-1)
