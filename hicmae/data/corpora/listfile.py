"""`list:PATH`: the authors' own list format, `<video or frame folder> <audio file> <label or targets...>`, separated by spaces.

PATH is one list (all of it training), a folder with train.csv and test.csv (one fold), or a folder with split01, split02, ...
that hold them (as many folds). A line of one path and a number is a clip for pre-training, as in the authors' VoxCeleb2 list.
Paths with spaces stand in double quotes.

    hicmae data check list:saved/data/crema-d/audio_visual
"""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

from hicmae.data.corpora.base import Corpus
from hicmae.data.corpora.own import Row, own_corpus, resolved
from hicmae.errors import ClipError, UsageError


def corpus(name: str, path: Path) -> Corpus:
    """The corpus of a list. Raises UsageError when there is none, ClipError for a line that cannot be used."""
    if path.is_file():
        return own_corpus(name, path.parent, read_list(path, path.parent))
    splits = [path] if (path / "train.csv").exists() else sorted(folder for folder in path.glob("split*") if folder.is_dir())
    if not splits:
        raise UsageError(
            f"{name}: {path} is neither a list nor a folder with train.csv and test.csv or with split01, split02, ..."
        )
    rows: dict[Path, Row] = {}
    for fold, folder in enumerate(splits, start=1):
        _add_split(rows, folder, fold, path)
    return own_corpus(name, path, list(rows.values()))


def _add_split(rows: dict[Path, Row], folder: Path, fold: int, root: Path) -> None:
    for part in ("train", "test"):
        file = folder / f"{part}.csv"
        if part == "test" and not file.exists():
            file = folder / "val.csv"  # some of the authors' splits call it so
        if not file.exists():
            raise UsageError(f"{file}: missing; a split needs train.csv and test.csv (or val.csv)")
        for row in read_list(file, root):
            clip = row.video or row.audio
            assert clip is not None
            known = rows.setdefault(clip, row)
            if known.answer != row.answer:
                raise ClipError(file, f"{clip} has the label {' '.join(row.answer)} here and {' '.join(known.answer)} elsewhere")
            if part == "test":
                rows[clip] = replace(known, test_folds=(*known.test_folds, fold))


def read_list(path: Path, root: Path) -> list[Row]:
    """The rows of one list file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ClipError(path, f"unreadable list ({error})") from None
    rows = []
    for number, fields in enumerate(csv.reader(io.StringIO(text), delimiter=" ", skipinitialspace=True), start=1):
        fields = [field for field in fields if field]
        if fields:
            rows.append(_row(fields, root, f"{path}, line {number}"))
    return rows


def _row(fields: list[str], root: Path, place: str) -> Row:
    if len(fields) < 2:
        raise ClipError(place, "needs at least a path and a label; paths with spaces stand in double quotes")
    video = resolved(fields[0], root, place)
    if len(fields) == 2:  # VoxCeleb2's list: a video and a number that means nothing
        return Row(video, video)
    return Row(video, resolved(fields[1], root, place), tuple(fields[2:]))
