"""One clip: its sound as a wav file, the face of one person as a video or a folder of pictures, and what was found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path, PurePosixPath

import numpy as np

from hicmae.data.clips import FrameReader, all_frames, is_folder, open_frames, probe, read_sound
from hicmae.data.corpora.base import PREPARED_FACES, PREPARED_SOUND, Part, Sample
from hicmae.data.prepare.crop import remove, squares, write_link, write_pictures, write_sound, write_video
from hicmae.data.prepare.faces import detector
from hicmae.data.prepare.part import PartOfVideo
from hicmae.data.prepare.track import Look, follow, longest_gap, smooth
from hicmae.errors import ClipError, UsageError, raise_unknown

FORMATS, MODALITIES = ("mp4", "pictures"), ("AV", "A", "V")
LEAST_SEEN = 0.1  # of the examined frames; less is a false find, not a person
EXAMINED_AT_ONCE = 16  # frames in memory while looking for faces
FOLDER_FPS = 25.0  # assumed for a folder of pictures, which has no rate; only the smoothing depends on it


@dataclass(frozen=True)
class Settings:
    """How clips are prepared; one folder holds clips of one setting. Raises UsageError for values that cannot be."""

    size_px: int = 160
    margin: float = 0.3  # of the face's size, both sides together
    align: bool = False  # turned so that the eyes are level
    every: int = 5  # frames from one look for faces to the next
    format: str = "mp4"
    modality: str = "AV"

    def __post_init__(self) -> None:
        if not 32 <= self.size_px <= 1024 or self.size_px % 2:
            raise UsageError(f"--size {self.size_px}: must be even and from 32 to 1024")
        if not 0 <= self.margin <= 3:
            raise UsageError(f"--margin {self.margin}: must be from 0 to 3")
        if self.every < 1:
            raise UsageError(f"--every {self.every}: must be at least 1")
        for option, value, valid in (("format", self.format, FORMATS), ("modality", self.modality, MODALITIES)):
            if value not in valid:
                raise_unknown(f"--{option}", value, valid)


@dataclass(frozen=True)
class Found:
    """What a clip held. `reason` is why it cannot be used, empty when it can."""

    frames: int = 0
    examined: int = 0
    with_face: int = 0
    most_faces: int = 0  # in one frame
    face_px: float = 0.0  # median size of the face followed
    longest_gap_s: float = 0.0  # without that face, bridged
    path: str = ""
    reason: str = ""

    @property
    def rate(self) -> float:
        """Share of the examined frames with the face that is followed."""
        return self.with_face / self.examined if self.examined else 0.0


@dataclass(frozen=True)
class Files:
    """Where the prepared picture and sound of a clip lie; None for what is not asked for."""

    video: Path | None
    audio: Path | None
    pictures: bool = False  # the video is a folder of pictures
    as_is: bool = False  # a link to the corpus' own, of aligned faces
    part: Part | None = None  # where the picture is, when it is part of a longer video

    def there(self) -> bool:
        """Whether both exist."""
        return all(path.exists() for path in (self.video, self.audio) if path)


def files_of(sample: Sample, folder: Path, settings: Settings, part: Part | None = None) -> Files:
    """The files of a prepared clip below `folder`. Raises UsageError for an id that leads elsewhere."""
    check_id(sample.sample_id)
    audio = folder / PREPARED_SOUND / f"{sample.sample_id}.wav" if "A" in settings.modality else None
    if "V" not in settings.modality:
        return Files(None, audio)
    as_is = sample.video is not None and is_aligned(sample.video)
    pictures = settings.format == "pictures" or (sample.video is not None and is_folder(sample.video))
    video = folder / PREPARED_FACES / (sample.sample_id if pictures else f"{sample.sample_id}.mp4")
    return Files(video, audio, pictures, as_is, part if sample.video is None else None)


def check_id(sample_id: str) -> None:
    """Refuse ids that are no plain relative path: absolute, with `..`, a backslash or a control character."""
    parts = sample_id.split("/")
    plain = all(part not in ("", ".", "..") for part in parts) and not PurePosixPath(sample_id).is_absolute()
    if not plain or "\\" in sample_id or not sample_id.isprintable():
        raise UsageError(f"sample id {sample_id!r} would lead out of the folder; rename it in the corpus' list")


def is_aligned(video: Path) -> bool:
    """A folder of faces that OpenFace cut out and aligned: <clip>_aligned/frame_det_00_000001.bmp."""
    return is_folder(video) and (video.name.endswith("_aligned") or any(video.glob("frame_det_*")))


def prepare_clip(sample: Sample, files: Files, settings: Settings) -> Found:
    """Write what `files` names. A clip that cannot be used gives a reason and no picture; errors of writing are raised."""
    try:
        if files.audio is not None:
            if sample.audio is None:
                raise ClipError(sample.video or sample.sample_id, "has no sound; use --modality V")
            write_sound(files.audio, read_sound(sample.audio))
        if files.video is None:
            return Found()
        reader = _frames_of(sample, files)
        if not files.as_is:
            return _write_face(reader, files, settings)
        write_link(files.video, reader.path)
        return Found(frames=len(reader))
    except ClipError as error:
        for path in (files.video, files.audio):  # half a clip, or that of an earlier source
            if path is not None:
                remove(path)
        found = getattr(error, "found", Found())
        return replace(found, path=error.path, reason=error.reason)


def _frames_of(sample: Sample, files: Files) -> FrameReader:
    if files.part:
        return PartOfVideo(files.part)
    if sample.video is None:
        raise ClipError(sample.audio or sample.sample_id, "has no video; use --modality A")
    return open_frames(sample.video)


class _NoFace(ClipError):
    def __init__(self, path: Path, found: Found) -> None:
        seen = f"a face in only {found.with_face}" if found.with_face else "no face in any"
        super().__init__(path, f"{seen} of {found.examined} examined frames")
        self.found = found


def _write_face(reader: FrameReader, files: Files, settings: Settings) -> Found:
    height, width = reader.read([0])[0].shape[:2]
    rate = Fraction(FOLDER_FPS if reader.path.is_dir() else probe(reader.path).fps or FOLDER_FPS).limit_denominator(1001)
    looks = list(_looks(reader, settings.every))
    path = follow(looks, width, height)
    found = Found(
        frames=len(reader),
        examined=len(looks),
        with_face=len(path),
        most_faces=max(len(look.faces) for look in looks),
        face_px=round(float(np.median([face.size for _, face in path])), 1) if path else 0.0,
        longest_gap_s=round(longest_gap(path, len(reader)) / float(rate), 2),
    )
    if found.rate < LEAST_SEEN:
        raise _NoFace(reader.path, found)
    track = smooth(path, len(reader), float(rate))
    crops = squares(all_frames(reader), track, settings.size_px, settings.margin, settings.align)
    times_s = reader.times_s()
    assert files.video is not None
    if files.pictures or times_s is None:
        write_pictures(files.video, crops)
    else:
        write_video(files.video, crops, times_s, rate, settings.size_px)
    return found


def _looks(reader: FrameReader, every: int) -> Iterator[Look]:
    """The faces in every `every`-th frame and in the last one."""
    frames = sorted({*range(0, len(reader), every), len(reader) - 1})
    for start in range(0, len(frames), EXAMINED_AT_ONCE):
        some = frames[start : start + EXAMINED_AT_ONCE]
        for frame, picture in zip(some, reader.read(some), strict=True):
            yield Look(frame, detector().faces(picture))
