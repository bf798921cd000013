"""The published values that tables stand beside: reports/paper_reference.csv, percent, each with its status.

Status: exact (printed by the authors' repository), two-sources, single (one secondary source), digitised (read off a figure).
A value that is not listed is not known, and stays empty. Origin of the file: reports/README.md.

Names meet halfway: the metric WF1 of "AVCAffe (arousal)" is the file's "WF1 arousal" of AVCAffe, and the PCC of a corpus with
several targets, our mean over them, stands beside the mean of the published values of each target.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean

from hicmae.presets import ENCODERS

STATUS_MARKS = {"exact": "", "two-sources": "", "single": "a", "digitised": "b"}  # the surest first
STATUS_WORDS = {
    "exact": "printed by the authors' repository",
    "two-sources": "found in two sources",
    "single": "known from one secondary source",
    "digitised": "read off a figure",
}
_SCALES = {"tiny": "T", "small": "S", "base": "B"}
_FOLD_ROWS = frozenset(str(fold) for fold in range(1, 7))
_TITLE_OF_ONE = re.compile(r"(?P<corpus>.+) \((?P<target>[^()]+)\)")


@dataclass(frozen=True)
class Published:
    """A published value in percent; `folds` holds the values per fold where the authors printed them.

    `is_mean` where only the value of each target was published and this is their mean.
    """

    value: float
    status: str
    source: str
    folds: tuple[tuple[int, float], ...] = ()
    is_mean: bool = False


@lru_cache(maxsize=1)
def _rows() -> tuple[dict[str, str], ...]:
    with (Path(__file__).parent / "paper_reference.csv").open(newline="") as file:
        return tuple(csv.DictReader(file))


def published(corpus_title: str, size: str, modality: str, metric: str, variant: str = "") -> Published | None:
    """The value of HiCMAE for a corpus, size (tiny, small, base), modality (A, V, AV) and variant; None when not known."""
    rows = matching(corpus_title, size, modality, metric, variant)
    totals = [row for row in rows if not row["fold"]]
    if not totals:
        return None
    folds = tuple((int(row["fold"]), float(row["value"])) for row in rows if row["fold"] in _FOLD_ROWS)
    if totals[0]["metric"] == totals[-1]["metric"]:
        return Published(float(totals[0]["value"]), totals[0]["status"], totals[0]["source"], folds)
    status = max((row["status"] for row in totals), key=list(STATUS_MARKS).index)
    source = f"mean of {', '.join(row['metric'] for row in totals)}: {totals[0]['source']}"
    return Published(fmean(float(row["value"]) for row in totals), status, source, is_mean=True)


def matching(corpus_title: str, size: str, modality: str, metric: str, variant: str = "") -> list[dict[str, str]]:
    """The rows of the file that a metric of a corpus is compared with, folds included."""
    scale = _SCALES.get(size)
    if scale is None or size not in ENCODERS:
        return []
    key = {"scale": scale, "modality": modality, "variant": variant}
    rows = [row for row in _rows() if all(row[name] == value for name, value in key.items())]
    own = [row for row in rows if (row["corpus"], row["metric"]) == (corpus_title, metric)]
    if own:
        return own
    one = _TITLE_OF_ONE.fullmatch(corpus_title)
    if one:
        return [row for row in rows if (row["corpus"], row["metric"]) == (one["corpus"], f"{metric} {one['target']}")]
    several = [row for row in rows if row["corpus"] == corpus_title and row["metric"].startswith(f"{metric} ")]
    return several if len(several) > 1 else []
