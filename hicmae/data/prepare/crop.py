"""The square around a face, and the files of a prepared clip. Every file is there whole or not at all.

Equal input gives equal bytes: encoders run on one thread and nothing of the time or the machine goes into a file.
"""

from __future__ import annotations

import os
import shutil
import wave
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from hicmae.data.clips import SAMPLE_RATE_HZ, Frames, Waveform
from hicmae.data.prepare.track import Row

TICKS_PER_S = 90_000
# Macroblock-tree rate control reads memory that was never written: the first video of a process would differ from the next.
X264 = {"crf": "18", "preset": "veryfast", "x264-params": "mbtree=0"}
JPEG_QUALITY = 95


def squares(frames: Iterable[Frames], track: Row, size_px: int, margin: float, align: bool) -> Iterator[Frames]:
    """The crops (size_px, size_px, 3) of a track (T, 4): the face's size and `margin` of it more; eyes level with `align`."""
    for frame, (x, y, face_px, angle) in zip(frames, track, strict=True):
        place = inside(x, y, face_px * (1 + margin), frame.shape[1], frame.shape[0])
        yield square(frame, *place, angle if align else 0.0, size_px)


def inside(x: float, y: float, side: float, width: int, height: int) -> tuple[float, float, float]:
    """A square moved, and if need be shrunk, into the frame: a face at the rim is off centre, but nothing is made up."""
    side = min(side, width, height)
    half = side / 2
    return min(max(x, half), width - half), min(max(y, half), height - half), side


def square(frame: Frames, x: float, y: float, side: float, angle: float, size_px: int) -> Frames:
    """A square of `side` pixels around (x, y), turned back by `angle`, as (size_px, size_px, 3).

    Coordinates are those of pixels' edges. Corners that turn out of the frame repeat its rim.
    """
    import cv2

    finer = max(1, int(side / size_px))  # cut out large, then average: a large face is not sampled at single pixels
    wide = size_px * finer
    scale = wide / side
    turn = scale * np.asarray([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shift = (wide - 1) / 2 - turn @ np.asarray([x - 0.5, y - 0.5])  # OpenCV counts from the middle of the first pixel
    matrix = np.column_stack([turn, shift])
    cut = cv2.warpAffine(frame, matrix, (wide, wide), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cut if finer == 1 else cv2.resize(cut, (size_px, size_px), interpolation=cv2.INTER_AREA), np.uint8)


def write_video(path: Path, pictures: Iterable[Frames], times_s: NDArray[np.float32], fps: Fraction, size_px: int) -> None:
    """H.264 with the times of the frames as they were, so a variable rate stays one and the sound stays in step."""
    with _whole(path) as temporary, av.open(str(temporary), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=X264)
        stream.width = stream.height = size_px
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        stream.codec_context.time_base = Fraction(1, TICKS_PER_S)
        for picture, time_s in zip(pictures, times_s, strict=False):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(float(time_s) * TICKS_PER_S), Fraction(1, TICKS_PER_S)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_pictures(path: Path, pictures: Iterable[Frames]) -> None:
    """A folder of JPEG pictures, 000001.jpg and on."""
    from PIL import Image

    with _whole(path) as temporary:
        temporary.mkdir()
        for number, picture in enumerate(pictures, start=1):
            Image.fromarray(picture).save(temporary / f"{number:06d}.jpg", quality=JPEG_QUALITY, subsampling=0)


def write_link(path: Path, source: Path) -> None:
    """A link to a folder of pictures that is taken as it is."""
    with _whole(path) as temporary:
        temporary.symlink_to(source.absolute(), target_is_directory=True)


def write_sound(path: Path, samples: Waveform) -> None:
    """16 kHz mono 16-bit PCM."""
    with _whole(path) as temporary, wave.open(str(temporary), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(samples.astype("<i2").tobytes())


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary name that becomes `path` when the block ends well, and is removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    remove(temporary)  # of a process that was killed; the caller holds the clip's lock
    try:
        yield temporary
        if path.is_dir():  # cannot be replaced by a rename
            remove(path)
        _sync(temporary)
        temporary.replace(path)
    finally:
        remove(temporary)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Take away a file, a link or a folder; what a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
