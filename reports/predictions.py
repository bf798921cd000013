"""The predictions of a run's test part, as tables need them: one entry per test sample, checked.

Legend: S samples, K regression targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hicmae.errors import RecordError
from hicmae.metrics import compute, merge_tasks

if TYPE_CHECKING:
    import pyarrow as pa

Array = NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """`truth` and `answers` are (S,) class indices, or (S, K) regression targets and outputs."""

    sample_ids: Array
    groups: Array
    truth: Array
    answers: Array
    targets: tuple[str, ...] = ()
    merged_tasks: bool = False
    values: dict[str, dict[str, float]] = field(default_factory=dict, compare=False, repr=False)  # metrics computed so far

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def is_classification(self) -> bool:
        return self.truth.ndim == 1

    def metrics(self, names: Sequence[str]) -> dict[str, float]:
        """Values of the named metrics. Raises UsageError for a metric that does not exist."""
        for name in names:
            if name not in self.values:
                self.values[name] = compute([name], self.truth, self.answers, self.targets)
        return {key: value for name in names for key, value in self.values[name].items()}

    def take(self, index: NDArray[np.int64]) -> Predictions:
        """The samples at `index`, repetitions allowed."""
        ids, groups, truth, answers = (array[index] for array in (self.sample_ids, self.groups, self.truth, self.answers))
        return Predictions(ids, groups, truth, answers, self.targets, self.merged_tasks)


def pooled(parts: Sequence[Predictions]) -> Predictions:
    """The test samples of several folds as one list: the paper computes its totals on it."""
    sample_ids, groups = (np.concatenate([getattr(part, name) for part in parts]) for name in ("sample_ids", "groups"))
    truth, answers = (np.concatenate([getattr(part, name) for part in parts]) for name in ("truth", "answers"))
    return Predictions(sample_ids, groups, truth, answers, parts[0].targets, parts[0].merged_tasks)


def read_predictions(path: Path, selection: str, targets: Sequence[str] = ()) -> Predictions:
    """The samples predicted at the selected epoch. Raises RecordError when the file is missing, damaged or has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Small files: one read of the whole, and no threads of its own.
        file = pq.ParquetFile(pa.py_buffer(path.read_bytes()), pre_buffer=False)
        names = [name for name in file.schema_arrow.names if not name.startswith("view_")]
        table = file.read(names, use_threads=False)
    except FileNotFoundError:
        raise RecordError("predictions.parquet: missing") from None
    except (OSError, pa.ArrowException) as error:
        raise RecordError(f"predictions.parquet: unreadable ({str(error).splitlines()[0]})") from None
    return _checked(_selected(table, selection), tuple(targets))


def _selected(table: pa.Table, selection: str) -> pa.Table:
    for name in ("sample_id", "group", "selection"):
        if name not in table.column_names:
            raise RecordError(f"predictions.parquet: has no column {name!r}")
    rules = table["selection"].to_pylist()
    if rules and rules.count(selection) == len(rules):
        return table
    chosen = np.flatnonzero(np.asarray(rules, dtype=str) == selection)
    if not len(chosen):
        found = ", ".join(sorted({str(rule) for rule in rules})) or "none"
        raise RecordError(f"predictions.parquet: has no predictions selected by {selection!r}, only {found}")
    if chosen[-1] - chosen[0] + 1 == len(chosen):
        return table.slice(chosen[0], len(chosen))
    return table.take(chosen)


def _checked(table: pa.Table, target_names: tuple[str, ...]) -> Predictions:
    names = table.column_names
    ids = table["sample_id"].to_pylist()
    sample_ids, groups = np.asarray(ids, dtype=str), np.asarray(table["group"].to_pylist(), dtype=str)
    if len(set(ids)) < len(ids):
        raise RecordError("predictions.parquet: a sample appears twice")
    targets = sorted((name for name in names if name.startswith("target_")), key=_number)
    scores = sorted((name for name in names if name.startswith("score_")), key=_number)
    if "label" in names and "prediction" in names and not targets:
        return _classified(table, sample_ids, groups, scores)
    if not targets or len(targets) != len(scores):
        raise RecordError("predictions.parquet: has neither label and prediction nor target_* and score_* columns")
    named = target_names if len(target_names) == len(targets) else ()
    return Predictions(sample_ids, groups, _matrix(table, targets), _matrix(table, scores), named)


def _classified(table: pa.Table, sample_ids: Array, groups: Array, scores: list[str]) -> Predictions:
    labels, answers = (_whole_numbers(table, name) for name in ("label", "prediction"))
    if scores:
        _matrix(table, scores)  # answers from scores that are not finite mean nothing
    tasks = table["task_id"].to_pylist() if "task_id" in table.column_names else [None]
    if any(task is None or task == "" for task in tasks):
        return Predictions(sample_ids, groups, labels, answers)
    return _by_task(np.asarray(tasks, dtype=str), groups, labels, _matrix(table, scores))


def _by_task(tasks: Array, groups: Array, labels: Array, scores: NDArray[np.float64]) -> Predictions:
    """Average the scores of a task's clips (AVCAffe labels tasks, not clips); the answer is the largest average."""
    names, merged = merge_tasks(scores, tasks.tolist())
    _, first = np.unique(tasks, return_index=True)
    first = np.sort(first)  # merge_tasks keeps the order of first appearance
    return Predictions(np.asarray(names), groups[first], labels[first], merged.argmax(axis=1), merged_tasks=True)


def _whole_numbers(table: pa.Table, name: str) -> NDArray[np.int64]:
    import pyarrow as pa

    column = table[name]
    values = column.to_numpy() if pa.types.is_integer(column.type) and not column.null_count else None
    if values is None or (len(values) and values.min() < 0):
        raise RecordError(f"predictions.parquet: column {name!r} has entries that are not class indices")
    return values.astype(np.int64)


def _matrix(table: pa.Table, names: list[str]) -> NDArray[np.float64]:
    matrix = np.stack([table[name].to_numpy().astype(float) for name in names], axis=1)  # (S, K)
    if not np.isfinite(matrix).all():
        raise RecordError(f"predictions.parquet: {names[0].partition('_')[0]} columns hold values that are not finite")
    return matrix


def _number(name: str) -> int:
    suffix = name.rpartition("_")[2]
    if not suffix.isdigit():
        raise RecordError(f"predictions.parquet: unexpected column {name!r}")
    return int(suffix)
