"""Clips that runs left out (`--on-error skip`): a table whose numbers miss some says how many, and of which rows.

Pre-trainings count too; a clip that several runs of a cell left out counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reports.cells import Cell
from reports.corpora import words
from reports.query import Study, StudyRun

NAMED = 3  # rows; of more, only their number is said


def skipped_of(run: StudyRun) -> list[str]:
    """The clips that a run left out, each with its reason; none where its record does not say."""
    clips = run.result.get("skipped_clips")
    return [str(clip) for clip in clips] if isinstance(clips, list) else []


def skipped_clips(runs: Iterable[StudyRun]) -> dict[str, list[str]]:
    """corpus -> clips that the runs left out."""
    found: dict[str, set[str]] = {}
    for run in runs:
        found.setdefault(run.corpus, set()).update(skipped_of(run))
    return {corpus: sorted(clips) for corpus, clips in found.items() if clips}


def notes(study: Study, cells: Sequence[Cell]) -> list[str]:
    """A sentence for every corpus, number of clips and set of rows that miss them; none where nothing was left out."""
    rows: dict[tuple[str, int], list[str]] = {}
    for cell in cells:
        for corpus, clips in skipped_clips([*cell.used, *study.found(cell.before)]).items():
            rows.setdefault((corpus, len(clips)), []).append(cell.variant)
    return [_sentence(words(corpus).title, count, names, len(cells)) for (corpus, count), names in rows.items()]


def _sentence(title: str, count: int, names: list[str], rows: int) -> str:
    which = "every row" if len(names) == rows else "; ".join(names) if len(names) <= NAMED else f"{len(names)} of {rows} rows"
    clips, were = ("clip", "was") if count == 1 else ("clips", "were")
    return f"{count} {clips} of {title} could not be used and {were} left out ({which})."
