"""What `list:`, `folder:` and `csv:` corpora share: rows of anybody's own data, turned into a corpus."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from hicmae.data.corpora.base import SOUND_SUFFIXES, VIDEO_SUFFIXES, Corpus, Sample
from hicmae.errors import ClipError, UsageError

_NUMBER = re.compile(r"0|[1-9][0-9]*")  # the number of a class; what looks otherwise (01, ²) is a name
_DIGITS = 9  # of a number of a class


@dataclass(frozen=True)
class Row:
    """One clip as a list or table gives it; `answer` is empty, a class name, or regression targets."""

    video: Path | None
    audio: Path | None
    answer: tuple[str, ...] = ()
    sample_id: str = ""
    group: str = ""
    test_folds: tuple[int, ...] = ()
    task_id: str | None = None


def own_corpus(
    name: str, root: Path, rows: Sequence[Row], targets: Sequence[str] = (), classes: tuple[str, ...] = (), remedy: str = ""
) -> Corpus:
    """A corpus of rows. Without answers it is for pre-training; numbers with a point or several columns are targets.

    With `classes` the answers are their numbers; without, they are the names. Raises ClipError, with what `remedy` says, for
    answers that do not fit the others.
    """
    if not rows:
        raise UsageError(f"{name}: holds no clips")
    task = "classification" if classes else _task(rows, targets, remedy)
    labels = tuple(str(index) for index in range(len(classes))) or (_classes(rows, name) if task == "classification" else ())
    width = len(rows[0].answer)
    names = tuple(targets) or tuple(f"target_{number}" for number in range(width)) if task == "regression" else ()
    samples = _samples(rows, root, task, labels, remedy)
    return Corpus(
        name=name,
        title=name,
        task=task,
        listing=lambda tree: samples,
        classes=classes or labels,
        targets=names,
        folds=tuple(sorted({fold for row in rows for fold in row.test_folds})),
        metrics={"classification": ("UAR", "WAR"), "regression": ("PCC", "CCC"), "pretraining": ()}[task],
        group_word="group",
        citation="your own data",
        folder="",
        root=root,
    )


def from_root(path: Path) -> Path:
    """The path from the root of the disk, without `..`, which the system takes after following links."""
    return path.resolve() if ".." in path.parts else path.absolute()


def class_count(numbers: Collection[str], place: object) -> int | None:
    """How many classes these numbers from 0 stand for, some of them perhaps without clips; None when they are not all numbers.

    Raises ClipError when hardly any of the classes would have clips: such labels are no numbers of classes.
    """
    if not all(_NUMBER.fullmatch(number) for number in numbers):
        return None
    largest = max(numbers, key=lambda number: (len(number), number))
    if len(largest) > _DIGITS or int(largest) > 10 * len(numbers) + 100:
        reason = f"the labels reach {largest[: 2 * _DIGITS]}, but only {len(numbers)} differ; number the classes from 0"
        raise ClipError(place, reason)
    return int(largest) + 1


def resolved(path: str, root: Path, place: object) -> Path:
    """A path of a list: below `root`, or absolute and below `root` or $HICMAE_DATA. Raises ClipError when it points elsewhere.

    `..` is taken from the text, so it never leads through a link. Links that the user made are followed: the data folder may be
    one, be named by where it really lies, and hold others; a list alone cannot reach what neither folder holds.
    """
    whole = Path(os.path.normpath(root.absolute() / path))
    allowed = [root.absolute()]
    if os.environ.get("HICMAE_DATA"):
        allowed.append(Path(os.environ["HICMAE_DATA"]).absolute())
    if any(whole.is_relative_to(folder) for folder in allowed):
        return whole
    real = Path(os.path.realpath(whole))
    for folder in allowed:
        if real.is_relative_to(os.path.realpath(folder)):
            return folder / real.relative_to(os.path.realpath(folder))
    raise ClipError(place, f"{path} points outside the data folder {root}; set HICMAE_DATA to a folder that holds both")


def _task(rows: Sequence[Row], targets: Sequence[str], remedy: str) -> str:
    first = rows[0]
    width = len(first.answer)
    for row in rows:
        if len(row.answer) != width:
            reason = f"has {len(row.answer)} labels where the first clip, {first.video or first.audio}, has {width}{remedy}"
            raise ClipError(row.video or row.audio, reason)
    if not width:
        return "pretraining"
    return "regression" if targets or width > 1 or fractions(rows) else "classification"


def fractions(rows: Sequence[Row]) -> bool:
    """Whether the answers are numbers, some of them with a point."""
    return all(is_number(row.answer[0]) for row in rows) and any("." in row.answer[0] for row in rows)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _classes(rows: Sequence[Row], name: str) -> tuple[str, ...]:
    """Class names in the order of their first rows; numbers from 0 without gaps, so that they stay what they are."""
    names = dict.fromkeys(row.answer[0] for row in rows)
    count = class_count(names, name)
    return tuple(names) if count is None else tuple(map(str, range(count)))


def _samples(rows: Sequence[Row], root: Path, task: str, labels: tuple[str, ...], remedy: str) -> list[Sample]:
    stems = Counter(_stem(row) for row in rows)
    samples = []
    for row in rows:
        stem = _stem(row)
        place = row.video or row.audio or root
        below = place.relative_to(_common(place, root)).parent / _bare(place)
        name = row.sample_id or (stem if stems[stem] == 1 else below.as_posix())
        label = labels.index(row.answer[0]) if task == "classification" else None
        targets = _numbers(row, place, remedy) if task == "regression" else None
        sample = Sample(name, row.video, row.audio, label, targets, row.group or name, row.test_folds, row.task_id)
        samples.append(sample)
    return samples


def _stem(row: Row) -> str:
    path = row.video or row.audio
    return _bare(path).removesuffix("_aligned") if path else ""


def _bare(path: Path) -> str:
    """The name without the suffix of a media file; a folder of frames may have points in its name."""
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES | SOUND_SUFFIXES else path.name


def _common(path: Path, root: Path) -> Path:
    return Path(os.path.commonpath([path, root.absolute()]))


def _numbers(row: Row, place: object, remedy: str) -> tuple[float, ...]:
    if not all(is_number(value) and math.isfinite(float(value)) for value in row.answer):
        raise ClipError(place, f"targets {' '.join(row.answer)} are not numbers{remedy}")
    return tuple(float(value) for value in row.answer)
