"""`folder:PATH`: folders named by class (`PATH/happy/clip.mp4`), perhaps below train and test; without classes, for pre-training.

A sound file of the same name beside the video is its sound; a folder of pictures (`clip` or, as OpenFace writes, `clip_aligned`)
is a video and wins over a video file of that name, whose sound it then has. Files that are no media are passed over.

Clips below test are the test part of the only fold, all others are training. A validation folder (val, valid, validation, dev)
is the test part where there is no test folder; else its clips join training, or are it, and validation cuts its own groups there.

    hicmae data check folder:/data/mine
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from hicmae.data.corpora.base import SOUND_SUFFIXES, VIDEO_SUFFIXES, Corpus, Tree
from hicmae.data.corpora.own import Row, from_root, own_corpus
from hicmae.errors import ClipError, UsageError

TRAIN = frozenset({"train", "training"})
TEST = frozenset({"test", "testing"})
VALIDATION = frozenset({"val", "valid", "validation", "dev"})


def corpus(name: str, path: Path) -> Corpus:
    """The corpus of a folder. Raises UsageError when it holds no clips, ClipError when two files are the same clip."""
    root = from_root(path)
    if not root.is_dir():
        raise UsageError(f"{name}: {root} is not a folder")
    clips: dict[PurePosixPath, dict[str, Path]] = {}
    for file in Tree.scan(root).files:
        clip, kind = _clip(PurePosixPath(file), root)
        if not kind:
            continue
        known = clips.setdefault(clip, {}).setdefault(kind, root / file)
        if known != root / file:
            raise ClipError(root / file, f"the clip {clip} is there twice (also {known}); keep one of them or rename it")
    parts = _parts(name, clips)
    rows = [_row(clip, media, parts) for clip, media in clips.items()]
    remedy = "; put every clip into a folder of its class"
    return own_corpus(name, root, sorted(rows, key=lambda row: row.answer), remedy=remedy)  # classes by name


def _clip(file: PurePosixPath, root: Path) -> tuple[PurePosixPath, str]:
    """The clip that a file belongs to and what it is of it: frames, video, sound or nothing."""
    suffix = file.suffix.lower()
    if suffix in SOUND_SUFFIXES | VIDEO_SUFFIXES:
        return file.with_suffix(""), "sound" if suffix in SOUND_SUFFIXES else "video"
    return file.with_name(file.name.removesuffix("_aligned") or file.name), "frames" if (root / file).is_dir() else ""


def _parts(name: str, clips: Iterable[PurePosixPath]) -> tuple[frozenset[str], frozenset[str]] | None:
    """The folders of all parts and those of the test part; None where the top folders are classes."""
    tops = {clip.parts[0] for clip in clips if len(clip.parts) > 1}
    lower = frozenset(top.lower() for top in tops)
    understood = TRAIN | VALIDATION | TEST
    if not lower & understood:
        return None
    if lower - understood or not (lower & TRAIN or (lower & VALIDATION and lower & TEST)):
        raise UsageError(
            f"{name}: holds the folders {', '.join(sorted(tops))}; they must be train and test, perhaps with "
            f"one of {', '.join(sorted(VALIDATION))}, or all be classes of other names"
        )
    return lower, lower & TEST or lower & VALIDATION


def _row(clip: PurePosixPath, media: dict[str, Path], parts: tuple[frozenset[str], frozenset[str]] | None) -> Row:
    video = media.get("video")
    everything, test = parts or (frozenset(), frozenset())
    part = clip.parts[0].lower() if len(clip.parts) > 1 and clip.parts[0].lower() in everything else ""
    classes = clip.parts[1 if part else 0 : -1][:1]
    return Row(media.get("frames", video), media.get("sound", video), classes, test_folds=(1,) if part in test else ())
