"""Reading media files: frames by decord, sound by PyAV, folders of pictures by Pillow.

Everything that can be wrong with a file is one ClipError that names it: missing, empty, unreadable or cut off, without
picture, without sound, sound too short. Sound comes out as 16 kHz mono 16-bit samples, whatever went in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import av
import decord
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hicmae.data.corpora.base import PICTURE_SUFFIXES
from hicmae.errors import ClipError

SAMPLE_RATE_HZ = 16000
SHORTEST_SAMPLES = 1024  # 64 ms; the authors' release refuses less
SHARE_PROMISED = 0.9  # of what the index of a file promises
CHUNK_FRAMES = 64  # decoded at once, so that a long clip of large frames fits in memory
decord.logging.set_level(decord.logging.QUIET)  # what is wrong with a file is said by ClipError
_SOURCE_PLACE = re.compile(r"^\S+\.(?:cc|h):\d+:\s*")
_ROW_PADDING = "from_size == to_size"  # decord's words when a frame is larger than its height, width and 3 channels
Frames = NDArray[np.uint8]  # (n, height, width, 3)
Waveform = NDArray[np.int16]  # (samples,)


class FrameReader(Protocol):
    """Frames of one clip by number."""

    path: Path

    def __len__(self) -> int: ...

    def times_s(self) -> NDArray[np.float32] | None:
        """Start of every frame and the end of the last (n + 1,), in seconds; None where a clip has no times."""

    def read(self, indices: Sequence[int]) -> list[Frames]:
        """Frames (height, width, 3) in the order asked for."""


class VideoFile:
    """A video file, by decord. Raises ClipError when it cannot be opened or has no frames."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _opened(path) as container:  # decord prints lines about what it cannot open, whatever its level
            if not container.streams.video:
                raise ClipError(path, "no video stream")
            promised = _promised(container)
        try:
            self._reader = decord.VideoReader(str(path), num_threads=1)
        except Exception as error:
            raise self._undecodable(error) from None
        if not len(self._reader):
            raise ClipError(path, "no frames")
        self._refuse_if_cut_off(*promised)

    def _refuse_if_cut_off(self, frames: int, seconds: float) -> None:
        """Cut off between two frames, which decord takes for the end. An edit list may leave out frames, but not time."""
        found = len(self)
        if found < SHARE_PROMISED * frames and self.times_s()[-1] < SHARE_PROMISED * seconds:
            raise ClipError(self.path, f"{found} of {frames} frames are there; the file is cut off or damaged")

    def __len__(self) -> int:
        return len(self._reader)

    def times_s(self) -> NDArray[np.float32]:
        spans = np.asarray(self._reader.get_frame_timestamp(range(len(self))), dtype=np.float32)  # (n, 2)
        return np.append(spans[:, 0], spans[-1, 1])

    def has_times(self) -> bool:
        times = self.times_s()
        return bool(times[0] > -1 and (np.diff(times) >= 0).all())

    def fps(self) -> float:
        return float(self._reader.get_avg_fps())

    def read(self, indices: Sequence[int]) -> list[Frames]:
        try:
            return list(self._reader.get_batch(list(indices)).asnumpy())
        except Exception as error:
            if _ROW_PADDING in str(error):
                return [self._unpadded(index) for index in indices]
            raise self._undecodable(error) from None

    def _unpadded(self, index: int) -> Frames:
        """A frame of 2 to 72 pixels' width, whose padding of rows decord takes for more channels: (H, W, C > 3)."""
        padded = self._reader[index].asnumpy()
        height, width, _ = padded.shape
        pixels: Frames = padded.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)  # (H, W * C) -> (H, W, 3)
        return pixels

    def _undecodable(self, error: Exception) -> ClipError:
        return ClipError(self.path, f"frames cannot be decoded; the file is cut off or damaged ({self._cause(error)})")

    def _cause(self, error: Exception) -> str:
        """What PyAV says of the frames, which is in words; what decord said if PyAV finds nothing wrong."""
        try:
            with av.open(str(self.path), metadata_errors="replace") as container:
                stream = container.streams.video[0]
                found = sum(1 for _ in container.decode(stream))
                return f"{found} of {stream.frames} frames are there" if found < stream.frames else _short(error)
        except (av.FFmpegError, ValueError) as said:
            return _short(said)


class UntimedVideo:
    """A video that says no time of some frames, as AVI with B-frames: decord, which looks for times, gives others than asked.

    PyAV decodes it from the beginning each time; frames last equally long.
    """

    def __init__(self, path: Path, frames: int, fps: float) -> None:
        self.path, self._count, self._fps = path, frames, fps

    def __len__(self) -> int:
        return self._count

    def times_s(self) -> NDArray[np.float32]:
        return np.arange(self._count + 1, dtype=np.float32) / np.float32(self._fps)

    def read(self, indices: Sequence[int]) -> list[Frames]:
        wanted, found = set(indices), {}
        with _opened(self.path) as container:
            for number, frame in enumerate(islice(container.decode(video=0), max(wanted, default=-1) + 1)):
                if number in wanted:
                    found[number] = frame.to_ndarray(format="rgb24")
        if wanted - found.keys():
            raise ClipError(self.path, f"{len(self)} frames are promised, but frame {min(wanted - found.keys())} is not there")
        return [found[index] for index in indices]


class FrameFolder:
    """A folder of pictures in the order of their names, as OpenFace and the authors' preparation write them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = picture_files(path)
        if not self._files:
            raise ClipError(path, "no frames: the folder holds no jpg, png, bmp or webp")

    def __len__(self) -> int:
        return len(self._files)

    def times_s(self) -> None:
        return None

    def read(self, indices: Sequence[int]) -> list[Frames]:
        return [self._picture(self._files[index]) for index in indices]

    def _picture(self, path: Path) -> Frames:
        try:
            with Image.open(path) as picture:
                return np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise ClipError(path, f"unreadable picture ({_short(error)})") from None


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder, by name. Raises ClipError when it cannot be looked into."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.name[0] != ".")
    except OSError as error:
        raise ClipError(folder, f"unreadable ({error.strerror})") from None


def open_frames(path: Path) -> FrameReader:
    """A reader of a video file or of a folder of pictures."""
    if is_folder(path):
        return FrameFolder(path)
    video = VideoFile(path)
    return video if video.has_times() else UntimedVideo(path, len(video), video.fps())


def is_folder(path: Path) -> bool:
    """Whether this is a folder of pictures; what cannot be looked at is none, and opening it as a file says why."""
    try:
        return path.is_dir()
    except OSError:  # a folder above may not be entered, a name is too long
        return False


def chunks(reader: FrameReader) -> Iterator[list[Frames]]:
    """Every frame once, in order, so many as are decoded at once."""
    for start in range(0, len(reader), CHUNK_FRAMES):
        yield reader.read(range(start, min(start + CHUNK_FRAMES, len(reader))))


def all_frames(reader: FrameReader) -> Iterator[Frames]:
    """Every frame once, in order."""
    return chain.from_iterable(chunks(reader))


def read_sound(path: Path) -> Waveform:
    """The first sound stream as 16 kHz mono (the mean of the channels). Raises ClipError, also when shorter than 64 ms."""
    with _opened(path) as container:
        if not container.streams.audio:
            raise ClipError(path, "no sound stream")
        wave, rate_hz = _decoded(container)
    samples = _to_int16(_resampled(wave, rate_hz))
    if len(samples) <= SHORTEST_SAMPLES:
        needed = SHORTEST_SAMPLES / SAMPLE_RATE_HZ
        raise ClipError(path, f"sound of {len(samples) / SAMPLE_RATE_HZ:.3f} s is empty or too short (needs {needed:.3f} s)")
    return samples


def _decoded(container: Any) -> tuple[NDArray[np.float32], int]:
    stream = container.streams.audio[0]
    stream.thread_type = "NONE"
    pieces = [_mono(frame) for frame in container.decode(stream)]
    return (np.concatenate(pieces) if pieces else np.zeros(0, np.float32)), stream.codec_context.sample_rate


def _mono(frame: Any) -> NDArray[np.float32]:
    """One frame of sound in [-1, 1], the mean of its channels."""
    values = frame.to_ndarray()  # planar: (channels, n); packed: (1, n * channels)
    channels = frame.layout.nb_channels
    if channels == 1 and values.dtype == np.float32:  # most of the time, and nothing to mix
        return np.asarray(values[0])
    if not frame.format.is_planar:
        values = values.reshape(-1, channels).T
    if values.dtype.kind == "u":
        values = values.astype(np.int16) - 128
        scale = 128.0
    else:
        scale = float(np.iinfo(values.dtype).max) + 1.0 if values.dtype.kind == "i" else 1.0
    mixed: NDArray[np.float32] = values.mean(0, dtype=np.float64).astype(np.float32) / np.float32(scale)
    return mixed


def _resampled(wave: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    if rate_hz == SAMPLE_RATE_HZ or not len(wave):
        return wave
    import torch
    from torchaudio.functional import resample

    resampled: NDArray[np.float32] = resample(torch.from_numpy(wave), rate_hz, SAMPLE_RATE_HZ).numpy()
    return resampled


def _to_int16(wave: NDArray[np.float32]) -> Waveform:
    return np.clip(np.rint(wave * 32768.0), -32768, 32767).astype(np.int16)


@dataclass(frozen=True)
class Probe:
    """What the header of a file says; None where it has no such stream."""

    video_s: float | None = None
    sound_s: float | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    sample_rate_hz: int | None = None
    channels: int | None = None


def probe(path: Path) -> Probe:
    """Streams, durations and rates without decoding. Raises ClipError when the file cannot be opened."""
    if is_folder(path):
        reader = FrameFolder(path)
        height, width = reader.read([0])[0].shape[:2]
        return Probe(frames=len(reader), width=width, height=height)
    with _opened(path) as container:
        return _probed(container)


def _probed(container: Any) -> Probe:
    whole_s = container.duration / av.time_base if container.duration else None
    values: dict[str, Any] = {}
    if container.streams.video:
        video = container.streams.video[0]
        values |= {"video_s": _stream_s(video, whole_s), "width": video.width, "height": video.height}
        values |= {"fps": float(video.average_rate or 0) or None, "frames": video.frames or None}
    if container.streams.audio:
        sound = container.streams.audio[0]
        values |= {"sound_s": _stream_s(sound, whole_s), "sample_rate_hz": sound.sample_rate, "channels": sound.channels}
    return Probe(**values)


def _stream_s(stream: Any, whole_s: float | None) -> float | None:
    return float(stream.duration * stream.time_base) if stream.duration is not None else whole_s


def _promised(container: Any) -> tuple[int, float]:
    """Frames and seconds that the index of an MP4 promises, of several videos the least; AVI's counts empty frames, too."""
    videos = container.streams.video if "mp4" in container.format.name else ()
    return min((video.frames for video in videos), default=0), min((_stream_s(video, 0) or 0 for video in videos), default=0)


def require_file(path: Path) -> None:
    """Raise ClipError unless this is a file with something in it."""
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise ClipError(path, "missing") from None
    except OSError as error:
        raise ClipError(path, f"unreadable ({error.strerror})") from None
    if not size:
        raise ClipError(path, "empty file")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file opened by PyAV; whatever goes wrong inside the block is a ClipError."""
    require_file(path)
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            yield container
    except (av.FFmpegError, ValueError) as error:
        raise ClipError(path, f"unreadable; the file is cut off, damaged or not a media file ({_short(error)})") from None


def _short(error: BaseException) -> str:
    """The first line of a library's message without times and places in its source."""
    lines = [line.strip() for line in str(getattr(error, "strerror", None) or error).splitlines() if line.strip()]
    return (_SOURCE_PLACE.sub("", lines[0].rsplit("] ", 1)[-1]) if lines else type(error).__name__)[:120]
