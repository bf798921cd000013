"""The published values that tables stand beside: reports/paper_reference.csv, percent, each with its status.

Status: exact (printed by the authors' repository), two-sources, single (one secondary source), digitised (read off a figure).
A value that is not listed is not known, and stays empty. Origin of the file: reports/README.md.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hicmae.presets import ENCODERS

STATUS_MARKS = {"exact": "", "two-sources": "", "single": "a", "digitised": "b"}
STATUS_WORDS = {"a": "known from one secondary source", "b": "read off a figure"}
_SCALES = {"tiny": "T", "small": "S", "base": "B"}
_FOLD_ROWS = frozenset(str(fold) for fold in range(1, 7))


@dataclass(frozen=True)
class Published:
    """A published value in percent; `folds` holds the values per fold where the authors printed them."""

    value: float
    status: str
    source: str
    folds: tuple[tuple[int, float], ...] = ()


@lru_cache(maxsize=1)
def _rows() -> tuple[dict[str, str], ...]:
    with (Path(__file__).parent / "paper_reference.csv").open(newline="") as file:
        return tuple(csv.DictReader(file))


def published(corpus_title: str, size: str, modality: str, metric: str, variant: str = "") -> Published | None:
    """The value of HiCMAE for a corpus, size (tiny, small, base), modality (A, V, AV) and variant; None when not known."""
    scale = _SCALES.get(size)
    if scale is None or size not in ENCODERS:
        return None
    key = {"corpus": corpus_title, "scale": scale, "modality": modality, "metric": metric, "variant": variant}
    rows = [row for row in _rows() if all(row[name] == value for name, value in key.items())]
    totals = [row for row in rows if not row["fold"]]
    if not totals:
        return None
    folds = tuple((int(row["fold"]), float(row["value"])) for row in rows if row["fold"] in _FOLD_ROWS)
    return Published(float(totals[0]["value"]), totals[0]["status"], totals[0]["source"], folds)
