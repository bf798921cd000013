"""`folder:PATH`: folders named by class (`PATH/happy/clip.mp4`), perhaps below train and test; without classes, for pre-training.

A sound file of the same name beside the video is its sound; a folder of pictures is a video.

    hicmae data check folder:/data/mine
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from hicmae.data.corpora.base import SOUND_SUFFIXES, VIDEO_SUFFIXES, Corpus, Tree
from hicmae.data.corpora.own import Row, own_corpus

PARTS = ("train", "test")


def corpus(name: str, path: Path) -> Corpus:
    """The corpus of a folder. Raises UsageError when it holds no clips."""
    tree = Tree.scan(path)
    clips: dict[str, dict[str, Path]] = {}
    for file in tree.files:
        relative = PurePosixPath(file)
        suffix = relative.suffix.lower()
        kind = "audio" if suffix in SOUND_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES or not suffix else ""
        if kind:
            clips.setdefault(str(relative.with_suffix("")), {})[kind] = path / file
    has_parts = {PurePosixPath(clip).parts[0] for clip in clips} == set(PARTS)
    rows = [_row(PurePosixPath(clip), media, has_parts) for clip, media in clips.items()]
    return own_corpus(name, path, sorted(rows, key=lambda row: row.answer))  # classes by name


def _row(clip: PurePosixPath, media: dict[str, Path], has_parts: bool) -> Row:
    video = media.get("video")
    muxed = video if video and video.suffix else None
    folders = clip.parts[1 if has_parts else 0 : -1]
    test = (1,) if has_parts and clip.parts[0] == "test" else ()
    return Row(video, media.get("audio", muxed), folders[:1], test_folds=test)
