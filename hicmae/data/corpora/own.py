"""What `list:`, `folder:` and `csv:` corpora share: rows of anybody's own data, turned into a corpus."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hicmae.data.corpora.base import Corpus, Sample
from hicmae.errors import ClipError, UsageError


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


def own_corpus(name: str, root: Path, rows: Sequence[Row], targets: Sequence[str] = (), classes: tuple[str, ...] = ()) -> Corpus:
    """A corpus of rows. Without answers it is for pre-training; numbers with a point or several columns are targets.

    With `classes` the answers are their numbers; without, they are the names.
    """
    if not rows:
        raise UsageError(f"{name}: holds no clips")
    task = "classification" if classes else _task(rows, targets)
    labels = tuple(str(index) for index in range(len(classes))) or (_classes(rows) if task == "classification" else ())
    width = len(rows[0].answer)
    names = tuple(targets) or tuple(f"target_{number}" for number in range(width)) if task == "regression" else ()
    samples = _samples(rows, root, task, labels)
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


def _task(rows: Sequence[Row], targets: Sequence[str]) -> str:
    widths = Counter(len(row.answer) for row in rows)
    if len(widths) > 1:
        odd = min(widths, key=lambda width: widths[width])
        row = next(row for row in rows if len(row.answer) == odd)
        raise ClipError(
            row.video or row.audio, f"has {odd} labels where others have {max(widths, key=lambda width: widths[width])}"
        )
    if not rows[0].answer:
        return "pretraining"
    fractions = all(_is_number(row.answer[0]) for row in rows) and any("." in row.answer[0] for row in rows)
    return "regression" if targets or len(rows[0].answer) > 1 or fractions else "classification"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _classes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Class names in the order of their first rows; numbers from 0 without gaps, so that they stay what they are."""
    names = dict.fromkeys(row.answer[0] for row in rows)
    if all(name.isdigit() for name in names):
        return tuple(str(number) for number in range(max(map(int, names)) + 1))
    return tuple(names)


def _samples(rows: Sequence[Row], root: Path, task: str, labels: tuple[str, ...]) -> list[Sample]:
    stems = Counter(_stem(row) for row in rows)
    samples = []
    for row in rows:
        stem = _stem(row)
        place = row.video or row.audio or root
        name = row.sample_id or (stem if stems[stem] == 1 else place.relative_to(_common(place, root)).with_suffix("").as_posix())
        label = labels.index(row.answer[0]) if task == "classification" else None
        targets = _numbers(row, place) if task == "regression" else None
        sample = Sample(name, row.video, row.audio, label, targets, row.group or name, row.test_folds, row.task_id)
        samples.append(sample)
    return samples


def _stem(row: Row) -> str:
    path = row.video or row.audio
    return path.stem.removesuffix("_aligned") if path else ""


def _common(path: Path, root: Path) -> Path:
    return Path(os.path.commonpath([path, root.absolute()]))


def _numbers(row: Row, place: object) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in row.answer)
    except ValueError:
        raise ClipError(place, f"targets {' '.join(row.answer)} are not numbers") from None
