"""What tables and figures say of a corpus: its title, classes, regression targets and metrics, headline first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hicmae.errors import HicmaeError

DESCRIBED = "_corpora.json"  # in the runs folder of an archive: words of corpora as they were where it was exported
_described: dict[str, dict[str, object]] = {}


@dataclass(frozen=True)
class CorpusWords:
    """`metrics` and `classes` are empty for a corpus whose description is not on this machine (a list of files elsewhere)."""

    title: str
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    group_word: str = "group"

    @property
    def drawn(self) -> str:
        """What a bootstrap draws: `whole actors`, or `single clips` where clips are in no groups."""
        return f"{'single' if self.group_word == 'clip' else 'whole'} {self.group_word}s"


def read_described(runs_root: Path) -> None:
    """Let the descriptions that came with an archive stand for those of this machine, which may lack a list of files."""
    path = runs_root / DESCRIBED
    try:
        wanted = json.loads(path.read_text())
    except (OSError, ValueError):
        wanted = {}
    if wanted != _described:
        _described.clear()
        _described.update(wanted)
        words.cache_clear()


@cache
def words(name: str) -> CorpusWords:
    """The words of a corpus by name; only its name where nothing else is known."""
    from hicmae.data import corpora

    if name in _described:
        told = {key: tuple(value) if isinstance(value, list) else value for key, value in _described[name].items()}
        return CorpusWords(**told)  # type: ignore[arg-type]
    try:
        known = corpora.get(name)
    except HicmaeError:
        return CorpusWords(name)
    title = known.title if ":" in name else known.title[:1].upper() + known.title[1:]  # csv:PATH stays as it is
    return CorpusWords(title, known.classes, known.targets, known.metrics, known.group_word)


def class_names(name: str, count: int) -> list[str]:
    """The names of `count` classes; their numbers where the names are not known."""
    known = words(name).classes
    return list(known) if len(known) == count else [str(index) for index in range(count)]
