"""What tables and figures say of a corpus: its title, classes, regression targets and metrics, headline first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from hicmae.errors import HicmaeError


@dataclass(frozen=True)
class CorpusWords:
    """`metrics` and `classes` are empty for a corpus whose description is not on this machine (a list of files elsewhere)."""

    title: str
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    group_word: str = "group"


@cache
def words(name: str) -> CorpusWords:
    """The words of a corpus by name; only its name where nothing else is known."""
    from hicmae.data import corpora

    try:
        known = corpora.get(name)
    except HicmaeError:
        return CorpusWords(name)
    title = known.title[:1].upper() + known.title[1:]
    return CorpusWords(title, known.classes, known.targets, known.metrics, known.group_word)


def class_names(name: str, count: int) -> list[str]:
    """The names of `count` classes; their numbers where the names are not known."""
    known = words(name).classes
    return list(known) if len(known) == count else [str(index) for index in range(count)]
