"""A repeated run against the recorded one: metrics, logged points, predictions sample by sample, weights; and the verdict.

Two runs are bit-identical when all of these are equal bit by bit. Else they agree when every headline metric differs by no more
than its spread: how far the metric moves, in the study itself, for reasons that say nothing (seeds, else folds).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import study_file
from hicmae.errors import HicmaeError, RecordError
from hicmae.record import RunRecord

if TYPE_CHECKING:
    import pyarrow as pa

IDENTICAL, WITHIN, DIFFERENT = "bit-identical", "within the spread", "DIFFERENT"
VERDICTS = (IDENTICAL, WITHIN, DIFFERENT)  # from the best to the worst
DEFAULT_POINTS = 1.0  # allowed for a metric in percent where the study has neither seeds nor folds to learn a spread from
DEFAULT_SHARE = 0.01  # allowed for other values, such as the loss of a pre-training
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Spread:
    """How far a value may lie from the recorded one, and in words why."""

    allowed: float
    words: str


@dataclass(frozen=True)
class Line:
    """One value of both runs; `spread` is None for values that are shown and not judged."""

    name: str
    recorded: float | None
    repeated: float | None
    spread: Spread | None

    @property
    def difference(self) -> float:
        """Repeated minus recorded; infinite where one of them is missing."""
        return float("inf") if self.recorded is None or self.repeated is None else self.repeated - self.recorded

    @property
    def is_within(self) -> bool:
        return self.spread is None or abs(self.difference) <= self.spread.allowed


@dataclass(frozen=True)
class Samples:
    """Predictions of both runs, matched by sample: how many, and how many differ."""

    total: int
    unmatched: int  # in one run only, or with another label
    other_scores: int
    other_answers: int
    largest: float  # difference of a score


@dataclass(frozen=True)
class Comparison:
    """One run, recorded and repeated. `weights` is None where one of them has none left to compare."""

    run_id: str
    label: str
    folder: str
    verdict: str
    reason: str
    lines: tuple[Line, ...]
    points: int
    other_points: int
    samples: Samples | None
    weights: bool | None

    def to_json(self) -> dict[str, Any]:
        lines = [
            {**asdict(line), "difference": None if line.difference == float("inf") else line.difference} for line in self.lines
        ]
        return {**asdict(self), "lines": lines}


def compare(recorded: RunRecord, repeated: RunRecord, spreads: Mapping[str, Spread], exact: bool, label: str = "") -> Comparison:
    """Both runs' results side by side; with `exact` only equal bits will do. Raises RecordError for a damaged record."""
    old, new = _result(recorded), _result(repeated)
    lines = _lines(old, new, spreads)
    points, other_points = _points(recorded, repeated)
    samples = _samples(recorded, repeated)
    weights = _same_weights(recorded, repeated)
    equal = not other_points and weights is not False and old.get("metrics") == new.get("metrics")
    equal = equal and (samples is None or not (samples.unmatched or samples.other_scores))
    verdict, reason = (IDENTICAL, "") if equal else _judged(lines, samples, exact)
    return Comparison(recorded.id, label, str(repeated.path), verdict, reason, lines, points, other_points, samples, weights)


def _judged(lines: Sequence[Line], samples: Samples | None, exact: bool) -> tuple[str, str]:
    beyond = [line for line in lines if not line.is_within]
    if samples and samples.unmatched:
        return DIFFERENT, f"{samples.unmatched} test samples are in one of them only, or have another label"
    if exact:
        return DIFFERENT, "determinism is on and hardware and packages are the same, so every bit should be equal"
    if beyond:
        worst = beyond[0]
        allowed = worst.spread.allowed if worst.spread else 0.0
        return DIFFERENT, f"{worst.name} differs by {worst.difference:+.3g}, allowed are {allowed:.3g}"
    return WITHIN, ""


def _result(record: RunRecord) -> dict[str, Any]:
    result = record.result()
    if result is None:
        raise RecordError(f"{record.path}: not done, so there is nothing to compare")
    return result


def _lines(old: Mapping[str, Any], new: Mapping[str, Any], spreads: Mapping[str, Spread]) -> tuple[Line, ...]:
    """The judged values of both, and what else differs."""
    before, after = values_of(old), values_of(new)
    names = [name for name in dict.fromkeys([*before, *after]) if name in spreads or before.get(name) != after.get(name)]
    return tuple(Line(name, before.get(name), after.get(name), spreads.get(name)) for name in names)


def values_of(result: Mapping[str, Any]) -> dict[str, float]:
    """`last UAR` and so on; of a pre-training its last loss."""
    metrics = {
        f"{selection} {metric}": float(value)
        for selection, found in (result.get("metrics") or {}).items()
        for metric, value in found.items()
    }
    loss = result.get("train_loss_last")
    return metrics if metrics or loss is None else {"loss": float(loss)}


def _points(recorded: RunRecord, repeated: RunRecord) -> tuple[int, int]:
    """Logged points of either run (losses and metrics, not speeds), and how many differ."""
    old, new = (
        {(p["split"], p["step"]): p.get("values") for p in r.metrics() if p["split"] != "system"} for r in (recorded, repeated)
    )
    keys = {*old, *new}
    return len(keys), sum(old.get(key) != new.get(key) for key in keys)


def _same_weights(recorded: RunRecord, repeated: RunRecord) -> bool | None:
    paths = [record.path / "checkpoints" / "final.safetensors" for record in (recorded, repeated)]
    return _digest(paths[0]) == _digest(paths[1]) if all(path.exists() for path in paths) else None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(partial(file.read, _BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def _samples(recorded: RunRecord, repeated: RunRecord) -> Samples | None:
    """Matched by selection and sample; None for runs without a test part."""
    paths = [record.path / "predictions.parquet" for record in (recorded, repeated)]
    if not any(path.exists() for path in paths):
        return None
    old, new = (_predictions(path) for path in paths)
    shared = sorted(set(old) & set(new))
    unmatched = len(set(old) ^ set(new)) + sum(old[key].truth != new[key].truth for key in shared)
    gaps = [_gap(old[key].scores, new[key].scores) for key in shared]
    answers = sum(old[key].answer != new[key].answer for key in shared)
    return Samples(len({*old, *new}), unmatched, sum(gap > 0 for gap in gaps), answers, max(gaps, default=0.0))


def _gap(first: np.ndarray, second: np.ndarray) -> float:
    if first.shape != second.shape:
        return float("inf")
    gaps = np.abs(first - second)[~(np.isnan(first) & np.isnan(second))]
    return float(np.nan_to_num(gaps, nan=np.inf).max(initial=0.0))


@dataclass(frozen=True)
class _Prediction:
    truth: tuple[Any, ...]
    scores: np.ndarray
    answer: Any


def _predictions(path: Path) -> dict[tuple[str, str], _Prediction]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise RecordError(f"{path}: unreadable ({str(error).splitlines()[0]})") from None
    names = table.column_names
    truth = [name for name in names if name == "label" or name.startswith("target_")]
    scores = [name for name in names if name.startswith(("view_", "score_"))]
    matrix = np.array([table[name].to_numpy() for name in scores], dtype=float).T  # (samples, scores)
    keys = zip(table["selection"].to_pylist(), table["sample_id"].to_pylist(), strict=True)
    truths, answers = _rows(table, truth), _rows(table, [name for name in names if name == "prediction"])
    return {key: _Prediction(truths[i], matrix[i], answers[i]) for i, key in enumerate(keys)}


def _rows(table: pa.Table, names: Sequence[str]) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].to_pylist() for name in names), strict=True)) if names else [()] * table.num_rows


def spreads_of(runs_root: Path, run_id: str, tolerance: float | None = None) -> dict[str, Spread]:
    """The spread of every headline metric of a run: from seeds of its place in a study, else from folds, else stated."""
    result = _result(RunRecord(runs_root / run_id))
    names = _judged_names(result)
    if tolerance is not None:
        return dict.fromkeys(names, Spread(tolerance, "as asked for"))
    seeds, folds = _siblings(runs_root, run_id)
    own = values_of(result)
    return {name: _from_seeds(name, seeds) or _from_folds(name, folds) or _stated(name, own[name]) for name in names}


def _judged_names(result: Mapping[str, Any]) -> list[str]:
    from hicmae.metrics import METRICS

    return [name for name in values_of(result) if name == "loss" or name.split()[1] in METRICS]


def _from_seeds(name: str, found: Sequence[Mapping[str, float]]) -> Spread | None:
    values = [values[name] for values in found if name in values]
    if len(values) < 2:
        return None
    largest = max(abs(a - b) for a, b in itertools.combinations(values, 2))
    return Spread(largest, f"largest difference between {len(values)} seeds")


def _from_folds(name: str, found: Sequence[Mapping[str, float]]) -> Spread | None:
    values = [values[name] for values in found if name in values]
    return Spread(float(np.std(values, ddof=1)), f"standard deviation over {len(values)} folds") if len(values) > 1 else None


def _stated(name: str, value: float) -> Spread:
    from hicmae.metrics import METRICS

    if name != "loss" and name.split()[1] in METRICS and name.split()[1] not in ("MAE", "RMSE"):
        return Spread(
            DEFAULT_POINTS, f"{DEFAULT_POINTS:g} point, since the study has no other seed or fold (--tolerance changes it)"
        )
    return Spread(DEFAULT_SHARE * abs(value), f"{DEFAULT_SHARE:.0%} of the value (--tolerance changes it)")


def _siblings(runs_root: Path, run_id: str) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Values of the runs that differ from this one in the seed alone, and in the fold alone; itself is among both."""
    for name in study_file.studies(runs_root):
        try:
            rows = study_file.read(runs_root, name)["runs"]
        except HicmaeError:
            continue
        own = next((row for row in rows if row["run_id"] == run_id), None)
        if own and own["stage"] == "finetune":
            alike = [row for row in rows if all(row[key] == own[key] for key in ("stage", "variants", "corpus"))]
            same_fold = [row["run_id"] for row in alike if row["fold"] == own["fold"]]
            same_seed = [row["run_id"] for row in alike if row["seed"] == own["seed"]]
            return _values(runs_root, same_fold), _values(runs_root, same_seed)
    return [], []


def _values(runs_root: Path, ids: Sequence[str]) -> list[dict[str, float]]:
    return [found for run_id in ids if (found := _values_or_none(runs_root / run_id))]


def _values_or_none(path: Path) -> dict[str, float]:
    """Empty for a run that is not done or damaged."""
    try:
        return values_of(RunRecord(path).result() or {})
    except HicmaeError:
        return {}
