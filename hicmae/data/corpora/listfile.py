"""`list:PATH`: the authors' own list format, `<video or frame folder> <audio file> <label or targets...>`, separated by spaces.

PATH is one list (all of it training), a folder with train.csv and test.csv (one fold; train.csv alone is one list), or a folder
with split01, split02, ... that hold them (as many folds, each of all clips). test.csv may be called val.csv; where both are, what
val.csv alone has joins training. A line of one path and a number is a clip for pre-training, as in the authors' VoxCeleb2 list;
so is one of a video and a sound file. Paths with spaces stand in double quotes.

    hicmae data check list:saved/data/crema-d/audio_visual
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

from hicmae.data.corpora.base import SOUND_SUFFIXES, VIDEO_SUFFIXES, Corpus
from hicmae.data.corpora.own import Row, from_root, is_number, own_corpus, resolved
from hicmae.errors import ClipError, UsageError

QUOTES = "; paths with spaces stand in double quotes"


def corpus(name: str, path: Path) -> Corpus:
    """The corpus of a list. Raises UsageError when there is none, ClipError for a line that cannot be used."""
    path = from_root(path)
    if path.is_file():
        return own_corpus(name, path.parent, read_list(path, path.parent), remedy=QUOTES)
    splits = _splits(path)
    if (path / "train.csv").exists():
        if splits:
            raise UsageError(f"{path}: holds both train.csv and {splits[0].name}; keep the one or the other")
        if not any((path / other).exists() for other in ("test.csv", "val.csv")):
            return own_corpus(name, path, read_list(path / "train.csv", path), remedy=QUOTES)
        splits = [path]
    if not splits:
        raise UsageError(
            f"{name}: {path} is neither a list nor a folder with train.csv and test.csv or with split01, split02, ..."
        )
    rows: dict[Path, Row] = {}
    for fold, folder in enumerate(splits, start=1):
        _add_split(rows, folder, fold, path)
    return own_corpus(name, path, list(rows.values()), remedy=QUOTES)


def _splits(path: Path) -> list[Path]:
    """The folders split01, split02, ... in the order of their numbers. Raises UsageError unless these go on from 1."""
    folders: dict[int, Path] = {}
    for folder in sorted(folder for folder in path.glob("split*") if folder.is_dir()):
        number = re.fullmatch(r"split[_-]?0*([1-9][0-9]{0,3})", folder.name)
        if not number or int(number[1]) in folders:
            raise UsageError(f"{folder}: a split has a number of its own; name the folders split01, split02, ...")
        folders[int(number[1])] = folder
    missing = [f"split{number:02d}" for number in range(1, max(folders, default=0)) if number not in folders]
    if missing:
        raise UsageError(f"{path}: {missing[0]} is missing (there are {', '.join(f.name for f in folders.values())}); add it")
    return [folders[number] for number in sorted(folders)]


def _add_split(rows: dict[Path, Row], folder: Path, fold: int, root: Path) -> None:
    """Take up a split. Raises ClipError naming a clip in which it does not agree with itself or with the splits before."""
    train, test = _parts(folder, root)
    if both := train.keys() & test.keys():
        raise ClipError(folder, f"{min(both)} is both in training and in test; remove it from one of them")
    here = train | test
    if rows and (odd := rows.keys() ^ here.keys()):
        where = "missing here" if min(odd) in rows else "missing in the splits before"
        raise ClipError(folder, f"{min(odd)} is {where}; train.csv and test.csv of every split together hold all clips")
    for clip, row in here.items():
        known = rows.setdefault(clip, row)
        for what, mine, its in (("label", row.answer, known.answer), ("sound", [str(row.audio)], [str(known.audio)])):
            if mine != its:
                raise ClipError(folder, f"{clip} has the {what} {' '.join(mine)} here and {' '.join(its)} in the splits before")
        if clip in test:
            rows[clip] = replace(known, test_folds=(*known.test_folds, fold))


def _parts(folder: Path, root: Path) -> tuple[dict[Path, Row], dict[Path, Row]]:
    """Training and test of a split, by clip. Some of the authors' splits call test.csv val.csv."""
    files = {part: folder / f"{part}.csv" for part in ("train", "test", "val")}
    found = {part: _by_clip(file, root) for part, file in files.items() if file.exists()}
    if "train" not in found or len(found) == 1:
        gone = files["train" if "train" not in found else "test"]
        raise UsageError(f"{gone}: missing; a split needs train.csv and test.csv (or val.csv)")
    if "test" not in found:
        return found["train"], found["val"]
    listed, more = found["train"] | found["test"], found.get("val", {})
    for clip, row in more.items():
        if listed.get(clip, row) != row:
            raise ClipError(files["val"], f"{clip} has another label or sound here than in the lists beside it; make them equal")
    return found["train"] | {clip: row for clip, row in more.items() if clip not in found["test"]}, found["test"]


def _by_clip(file: Path, root: Path) -> dict[Path, Row]:
    rows: dict[Path, Row] = {}
    for row in read_list(file, root):
        clip = row.video or row.audio
        assert clip is not None
        if clip in rows:
            raise ClipError(file, f"{clip} is there twice; remove one of its lines")
        rows[clip] = row
    return rows


def read_list(path: Path, root: Path) -> list[Row]:
    """The rows of one list file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ClipError(path, f"unreadable list ({error}); it has to be a text in UTF-8") from None
    rows = []
    lines = csv.reader(io.StringIO(text), delimiter=" ", skipinitialspace=True, strict=True)
    try:
        for number, line in enumerate(lines, start=1):
            if fields := [field for field in line if field]:
                rows.append(_row(fields, root, f"{path}, line {number}"))
    except csv.Error as error:  # a quote that is never closed would take the following lines into one field
        raise ClipError(path, f"unreadable list up to line {lines.line_num} ({error}); look for a quote left open") from None
    return rows


def _row(fields: list[str], root: Path, place: str) -> Row:
    if len(fields) < 2:
        raise ClipError(place, f"needs at least a path and a label{QUOTES}")
    video = resolved(fields[0], root, place)
    if len(fields) == 2 and is_number(fields[1]):  # VoxCeleb2's list: a video and a number that means nothing
        return Row(video, video)
    sound = resolved(fields[1], root, place)
    if len(fields) == 2 and sound.suffix.lower() not in SOUND_SUFFIXES | VIDEO_SUFFIXES:
        raise ClipError(place, f"{fields[1]} is neither a number nor a sound file; needs a video, a sound and a label{QUOTES}")
    return Row(video, sound, tuple(fields[2:]))
