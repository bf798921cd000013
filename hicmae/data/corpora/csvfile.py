"""`csv:PATH`: a CSV or parquet table of anybody's own data, one clip per row.

Columns: `video` and/or `audio` (paths below the table's folder), `label` or any number of `target_<name>`, and perhaps
`sample_id`, `group` (actor, session) and `fold` (the fold whose test part holds it). Without answers it is for pre-training.

    hicmae data check csv:/data/mine/clips.csv
"""

from __future__ import annotations

from pathlib import Path

from hicmae.data.corpora.base import Corpus, column, table
from hicmae.data.corpora.own import Row, own_corpus, resolved
from hicmae.errors import ClipError, UsageError

TARGET = "target_"


def corpus(name: str, path: Path) -> Corpus:
    """The corpus of a table. Raises UsageError when it is not there, ClipError for a row that cannot be used."""
    if not path.is_file():
        raise UsageError(f"{name}: {path} is not a file")
    rows = _parquet(path) if path.suffix == ".parquet" else table(_text(path))
    if rows and not {"video", "audio"} & set(rows[0]):
        raise UsageError(f"{path}: has the columns {', '.join(rows[0])}; needs video or audio, and label or {TARGET}<name>")
    targets = [key for key in rows[0] if key.startswith(TARGET)] if rows else []
    made = [_row(row, targets, path, number) for number, row in enumerate(rows, start=2)]
    return own_corpus(name, path.parent, made, [key.removeprefix(TARGET) for key in targets])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ClipError(path, f"unreadable table ({error})") from None


def _parquet(path: Path) -> list[dict[str, str]]:
    import pandas

    values = pandas.read_parquet(path).astype(object).fillna("")
    return [{str(key).lower(): str(value) for key, value in row.items()} for row in values.to_dict("records")]


def _row(row: dict[str, str], targets: list[str], path: Path, number: int) -> Row:
    place = f"{path}, line {number}"
    video, audio = (resolved(row[key], path.parent, place) if row.get(key) else None for key in ("video", "audio"))
    if video is None and audio is None:
        raise ClipError(place, "names neither a video nor an audio file")
    answer = tuple(column(row, (key,), place) for key in targets)
    if not targets and "label" in row:
        answer = (column(row, ("label",), place),)
    return Row(
        video,
        audio or video,
        answer,
        sample_id=row.get("sample_id", ""),
        group=row.get("group", ""),
        test_folds=_folds(row.get("fold", ""), place),
    )


def _folds(text: str, place: str) -> tuple[int, ...]:
    if not text:
        return ()
    try:
        return tuple(int(float(fold)) for fold in text.split())
    except ValueError:
        raise ClipError(place, f"fold {text!r} is not a number") from None
