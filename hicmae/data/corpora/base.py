"""What a corpus is: its samples, labels, folds and published protocol, worked out from file names and list files alone.

A corpus is one `Corpus` value and one pure function from a `Tree` (names of files, texts of lists) to samples. Media files
are never opened here, so that a plan for a thousand runs takes no decoding and a protocol can be tested on names.

    from hicmae.data.corpora import get
    get("crema_d").samples(Path("/data/CREMA-D"))
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from hicmae.errors import ClipError, UsageError, nearest_first

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".flv", ".avi", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v", ".wmv", ".3gp", ".ogv", ".ts", ".mts"}
)
LOSSLESS_SUFFIXES = frozenset({".wav", ".flac"})
SOUND_SUFFIXES = LOSSLESS_SUFFIXES | {".m4a", ".mp3", ".ogg", ".aac", ".opus", ".wma", ".aif", ".aiff"}
LIST_SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".json", ".xlsx", ".parquet", ".zip", ".md", ".pdf", ".lab", ".npz", ".toml"})
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
NAMED_LABELS = 12  # in a message
# Folders that `hicmae data prepare` writes beside the files as distributed; they win over everything else.
PREPARED_FACES, PREPARED_SOUND = "faces", "sound"


@dataclass(frozen=True)
class Sample:
    """One clip of a corpus with what its protocol says about it."""

    sample_id: str  # unique inside the corpus
    video: Path | None  # a video file or a folder of frames; None when the corpus has no picture for it
    audio: Path | None  # the same path as `video` for files that carry both
    label: int | None  # index in Corpus.classes
    targets: tuple[float, ...] | None  # in the order of Corpus.targets
    group: str  # actor, session, game or subject: unit of validation cuts and of cluster bootstraps
    test_folds: tuple[int, ...] = ()  # folds (from 1) whose test part holds it; empty: always training
    task_id: str | None = None  # clips of one task are averaged (AVCAffe)


@dataclass(frozen=True)
class Tree:
    """The names below a folder and the texts of its list files. A folder that holds pictures counts as one name."""

    root: Path
    files: tuple[str, ...]  # relative, with /, sorted
    texts: Mapping[str, str] | None = None  # of files that exist in a test's head only

    @classmethod
    def scan(cls, root: Path) -> Tree:
        """Walk a folder. Raises UsageError when it is not one."""
        if not root.is_dir():
            raise UsageError(f"{root}: is not a folder; set HICMAE_DATA or the line of this corpus in data.toml")
        return cls(root, tuple(sorted(_walk(root))))

    @classmethod
    def of(cls, names: Iterable[str], texts: Mapping[str, str] | None = None, root: Path = Path("/data")) -> Tree:
        """A tree of names that need not exist on a disk."""
        texts = texts or {}
        return cls(root, tuple(sorted({*names, *texts})), texts)

    def read(self, name: str) -> str:
        """The text of a list file, without a byte-order mark."""
        if self.texts is not None and name in self.texts:
            return self.texts[name]
        try:
            return (self.root / name).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ClipError(self.root / name, f"unreadable list ({error})") from None

    def matching(self, pattern: str) -> Iterator[tuple[str, re.Match[str]]]:
        """Names in which the pattern matches to the end, with the match."""
        expression = re.compile(f"(?:{pattern})$")
        for name in self.files:
            if match := expression.search(name):
                yield name, match

    def one(self, pattern: str) -> str:
        """The only (or first) list file that matches; UsageError when the layout lacks it."""
        for name, _ in self.matching(pattern):
            return name
        raise UsageError(f"{self.root}: no file matches {pattern}; the layout is not the one distributed")


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = PurePosixPath(Path(folder).relative_to(root).as_posix())
        if any(PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES for name in names) and folder != str(root):
            yield str(place)
        for name in names:
            if not name.startswith(".") and PurePosixPath(name).suffix.lower() not in PICTURE_SUFFIXES:
                yield str(place / name)


@dataclass(frozen=True)
class Part:
    """The picture of a clip inside a longer video of two people side by side; `hicmae data prepare` cuts it out."""

    video: Path
    start_s: float
    end_s: float
    side: str  # left or right half of the picture


@dataclass(frozen=True)
class Corpus:
    """A corpus and its published protocol; `listing` turns the names of its files into samples."""

    name: str
    title: str
    task: str  # classification, regression or pretraining
    listing: Callable[[Tree], list[Sample]] = field(repr=False)
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    folds: tuple[int, ...] = ()
    metrics: tuple[str, ...] = ()  # the first is the headline
    group_word: str = "clip"
    stride_frames: int = 4
    fps: float | None = None
    citation: str = ""
    licence_url: str = ""
    layout: str = ""  # what the folder must hold, for the message when it does not
    published: Mapping[str, int] = field(default_factory=dict)  # counts of the corpus' paper and of the authors' release
    folder: str = ""  # below $HICMAE_DATA; corpora that share files share it
    # Part of a 224x224 frame that the authors cut out for an input of at most so many pixels: {px: (top, bottom, left, right)}.
    crops: Mapping[int, tuple[int, int, int, int]] = field(default_factory=dict)
    root: Path | None = None  # of list:, folder: and csv: corpora, which bring their own place
    parts: Callable[[Tree], Mapping[str, Part]] | None = field(
        default=None, repr=False
    )  # of clips whose video is not cut out yet

    def samples(self, root: Path) -> list[Sample]:
        """All samples below `root`, sorted by id. Raises UsageError or ClipError with one line on a broken layout."""
        tree = Tree(root, ()) if self.root is not None else Tree.scan(root)  # own data are listed already
        return self.checked(self.listing(tree), root)

    def checked(self, samples: Iterable[Sample], root: Path) -> list[Sample]:
        """Sorted by id. Refuses an empty corpus, an id that is there twice, and labels or folds outside the protocol."""
        ordered = sorted(samples, key=lambda sample: sample.sample_id)
        if not ordered:
            raise UsageError(f"{root}: no clips of {self.title}; expected {self.layout or 'its layout as distributed'}")
        for sample, following in pairwise(ordered):
            if sample.sample_id == following.sample_id:
                first, second = (str(item.video or item.audio) for item in (sample, following))
                raise ClipError(second, f"the id {sample.sample_id} is there twice (also {first}); ids must be unique")
        for sample in ordered:
            self._check(sample)
        return ordered

    def outputs(self) -> int:
        """Classes or regression targets: the width of a model's answer."""
        return len(self.classes or self.targets)

    def crop(self, image_px: int) -> tuple[int, int, int, int] | None:
        """The part (top, bottom, left, right) of a 224x224 frame that an input of `image_px` sees; None for all of it."""
        return next((self.crops[px] for px in sorted(self.crops) if image_px <= px), None)

    def _check(self, sample: Sample) -> None:
        place = sample.video or sample.audio or sample.sample_id
        if self.task == "classification" and not (sample.label is not None and 0 <= sample.label < len(self.classes)):
            raise ClipError(place, f"unknown label {sample.label!r}; {self.title} has {len(self.classes)} classes")
        if self.task == "regression" and len(sample.targets or ()) != len(self.targets):
            raise ClipError(place, f"targets {sample.targets!r}; {self.title} has {', '.join(self.targets)}")
        if unknown := set(sample.test_folds) - set(self.folds):
            raise ClipError(place, f"unknown fold {min(unknown)}; {self.title} has {_span(self.folds)}")


def _span(folds: Sequence[int]) -> str:
    return f"folds {folds[0]} to {folds[-1]}" if folds else "no folds"


def label_index(classes: Sequence[str], name: str, place: object) -> int:
    """The position of a class name; ClipError naming the nearest classes when there is none."""
    try:
        return list(classes).index(name)
    except ValueError:
        known = nearest_first(name, classes)
        more = ", ..." if len(known) > NAMED_LABELS else ""
        raise ClipError(place, f"unknown label {name!r}; known, nearest first: {', '.join(known[:NAMED_LABELS])}{more}") from None


@dataclass(frozen=True)
class Media:
    """Where the picture and the sound of one clip lie."""

    video: Path | None
    audio: Path | None


def media_by_stem(
    tree: Tree, pattern: str, key: Callable[[str], str] = str, sound_in_video: bool = True, avoid: str = ""
) -> dict[str, Media]:
    """Files whose name without suffix matches `pattern`, by `key` of that name.

    A folder of frames wins over a video file, a sound file over the sound inside the video, lossless sound over other (CREMA-D
    has MP3 and WAV), and what `prepare` wrote over all.
    `<name>_aligned`, as OpenFace writes, is the folder of frames of `<name>`. Paths in which `avoid` is found are passed over;
    with sound_in_video=False a clip without a sound file has no sound.
    """
    wanted, unwanted = re.compile(pattern), re.compile(avoid) if avoid else None
    found: dict[str, dict[str, tuple[int, str]]] = {"frames": {}, "video": {}, "sound": {}}
    for name in tree.files:
        path = PurePosixPath(name)
        kind = _kind(path)
        stem = (path.name if kind == "frames" else path.stem).removesuffix("_aligned")
        if kind and wanted.fullmatch(stem) and not (unwanted and unwanted.search(name)):
            _keep_best(found[kind], key(stem), (_rank(path), name), tree)
    frames, videos, sounds = (
        {stem: tree.root / name for stem, (_, name) in found[kind].items()} for kind in ("frames", "video", "sound")
    )
    inside = videos if sound_in_video else {}
    stems = sorted({*frames, *videos, *sounds})
    return {stem: Media(frames.get(stem, videos.get(stem)), sounds.get(stem, inside.get(stem))) for stem in stems}


def _rank(path: PurePosixPath) -> int:
    """The smaller the better: prepared, distributed without loss, others."""
    if path.parts[0] in {PREPARED_FACES, PREPARED_SOUND}:
        return 0
    return 1 if path.suffix.lower() in LOSSLESS_SUFFIXES else 2


def _kind(path: PurePosixPath) -> str:
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return "video"
    return "sound" if suffix in SOUND_SUFFIXES else "" if suffix in LIST_SUFFIXES else "frames"


def _keep_best(found: dict[str, tuple[int, str]], stem: str, candidate: tuple[int, str], tree: Tree) -> None:
    known = found.get(stem)
    if known and known[0] == candidate[0] and PurePosixPath(known[1]).suffix == PurePosixPath(candidate[1]).suffix:
        raise ClipError(tree.root / candidate[1], f"the clip {stem} is there twice (also {known[1]}); keep one of them")
    if known is None or candidate < known:
        found[stem] = candidate


def listed(found: Mapping[str, Media], stem: str, expected: Path) -> Media:
    """The media of a clip that a list names; where they would be when they are not there, so that a check can say so."""
    return found.get(stem) or Media(expected, expected)


def table(text: str, delimiter: str = ",", place: object = "a table") -> list[dict[str, str]]:
    """The rows of a list file with a header, by lower-case column name without spaces around. ClipError naming `place` else."""
    rows = csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
        return [_named(row, f"{place}, line {rows.reader.line_num}") for row in rows]
    except csv.Error as error:  # a quote that is never closed would take the following lines into one field
        reason = (
            f"unreadable table up to line {rows.reader.line_num} ({error}); look for a quote left open, or for spaces behind one"
        )
        raise ClipError(place, reason) from None


def _named(row: dict[Any, Any], place: str) -> dict[str, str]:
    """A row without the empty values behind its last column. Raises ClipError where one of them is not empty."""
    surplus = [value for value in row.pop(None, ()) if value.strip()]
    if surplus:
        raise ClipError(place, f"{surplus[0]!r} stands behind the last column; quote values that hold a separator")
    return {name: (value or "").strip() for name, value in row.items()}


def column(row: Mapping[str, str], names: Sequence[str], place: object) -> str:
    """The value of the first of the columns that the row has; ClipError naming them when it has none."""
    for name in names:
        if row.get(name):
            return row[name]
    raise ClipError(place, f"a line without {' or '.join(names)}")
