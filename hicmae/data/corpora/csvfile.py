"""`csv:PATH`: a CSV or parquet table of anybody's own data, one clip per row.

Columns: `video` and/or `audio` (paths below the table's folder), and the answer: `label`, or any number of `target_<name>`
(regression), or none (pre-training). Perhaps `sample_id`, `group` (actor, session), `fold` (the fold whose test part holds it;
several with spaces between) and `task_id` (the test scores of a task's clips are averaged, as in AVCAffe).

Classes have the order of their first rows. Where that is not the order wanted, `class` holds the names and `label` the numbers
from 0; numbers alone in `label` stand for themselves (1.0 is 1). `hicmae data export CORPUS --format csv` writes such a table.

    hicmae data check csv:/data/mine/clips.csv
"""

from __future__ import annotations

import re
from pathlib import Path

from hicmae.data.corpora.base import Corpus, column, table
from hicmae.data.corpora.own import Row, class_count, fractions, from_root, own_corpus, resolved
from hicmae.errors import ClipError, UsageError

TARGET = "target_"
_WHOLE = re.compile(r"([0-9]+)\.0*")  # how tables of programs write whole numbers beside empty cells


def corpus(name: str, path: Path) -> Corpus:
    """The corpus of a table. Raises UsageError when it is not there, ClipError for a row that cannot be used."""
    path = from_root(path)
    if not path.is_file():
        raise UsageError(f"{name}: {path} is not a file")
    rows = _parquet(path) if path.suffix.lower() == ".parquet" else table(_text(path), place=path)
    if rows and not {"video", "audio"} & set(rows[0]):
        raise UsageError(f"{path}: has the columns {', '.join(rows[0])}; needs video or audio, and label or {TARGET}<name>")
    targets = [key for key in rows[0] if key.startswith(TARGET)] if rows else []
    made = [_row(row, targets, path, number) for number, row in enumerate(rows, start=2)]
    if made and made[0].answer and not targets and fractions(made):
        odd = next(row.answer[0] for row in made if "." in row.answer[0])
        raise ClipError(path, f"the label {odd} is no class; columns of regression targets are named {TARGET}<name>")
    classes = _class_names(rows, path) if rows and {"class", "label"} <= set(rows[0]) else ()
    _check_tasks(made, path)
    return own_corpus(name, path.parent, made, [key.removeprefix(TARGET) for key in targets], classes)


def _check_tasks(rows: list[Row], path: Path) -> None:
    """Where clips have tasks all of them must, and those of one task must agree in what they are. Raises ClipError otherwise."""
    if not any(row.task_id for row in rows):
        return
    first: dict[str, Row] = {}
    for number, row in enumerate(rows, start=2):
        if not row.task_id:
            raise ClipError(f"{path}, line {number}", "a line without task_id, which other lines have")
        other = first.setdefault(row.task_id, row)
        if (row.answer, row.test_folds) != (other.answer, other.test_folds):
            raise ClipError(f"{path}, line {number}", f"label or fold differ from those of task {row.task_id} above")


def _class_names(rows: list[dict[str, str]], path: Path) -> tuple[str, ...]:
    """The column `class` in the order of the numbers in the column `label`. Raises ClipError where the two do not agree."""
    names: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        place = f"{path}, line {number}"
        label, name = _label(row, ("label",), place), column(row, ("class",), place)
        if names.setdefault(label, name) != name:
            raise ClipError(place, f"label {label} is {name} here and {names[label]} above")
    count = class_count(names, path)
    if count is None or len(set(names.values())) < len(names):
        raise ClipError(path, f"beside class, label must be one number from 0 for each class; it is {', '.join(sorted(names))}")
    return tuple(names.get(str(index), str(index)) for index in range(count))  # a class may have no clips


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ClipError(path, f"unreadable table ({error}); it has to be a text in UTF-8") from None


def _parquet(path: Path) -> list[dict[str, str]]:
    import pandas
    import pyarrow

    try:
        values = pandas.read_parquet(path).astype(object).fillna("")
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise ClipError(path, f"unreadable parquet table ({reason}); write it again") from None
    return [{str(key).lower(): str(value) for key, value in row.items()} for row in values.to_dict("records")]


def _row(row: dict[str, str], targets: list[str], path: Path, number: int) -> Row:
    place = f"{path}, line {number}"
    video, audio = (resolved(row[key], path.parent, place) if row.get(key) else None for key in ("video", "audio"))
    if video is None and audio is None:
        raise ClipError(place, "names neither a video nor an audio file")
    answer = tuple(column(row, (key,), place) for key in targets)
    if not targets and {"label", "class"} & set(row):
        answer = (_label(row, ("label", "class"), place),)
    return Row(
        video,
        audio or video,
        answer,
        sample_id=row.get("sample_id", ""),
        group=row.get("group", ""),
        test_folds=_folds(row.get("fold", ""), place),
        task_id=row.get("task_id") or None,
    )


def _label(row: dict[str, str], names: tuple[str, ...], place: str) -> str:
    return _whole(column(row, names, place))


def _whole(text: str) -> str:
    """A whole number without the point behind it; any other text as it is."""
    return match[1] if (match := _WHOLE.fullmatch(text)) else text


def _folds(text: str, place: str) -> tuple[int, ...]:
    folds = [_whole(fold) for fold in text.split()]
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,3}", fold) for fold in folds):
        raise ClipError(place, f"fold {text!r} is not a number of a fold; these are whole and begin with 1")
    return tuple(int(fold) for fold in folds)
