"""One run's record as reports need it: checked, with its predictions, or with the reason why it does not count.

Thousands of runs are read for a report, so a configuration is compared with its hash first and checked field by field only
where that fails, and test lists that many runs share are kept once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from hicmae.config import RUN_ID_LENGTH, STAGES, to_dict
from hicmae.errors import HicmaeError, RecordError
from hicmae.metrics import METRICS
from hicmae.record import RunRecord
from reports.predictions import Predictions, read_predictions

TOLERANCE = 0.01  # percentage points between a recorded metric and the one computed from its predictions


@dataclass(frozen=True)
class StudyRun:
    """A run that the study wants. `problem` says why it does not count; predictions are there where it does.

    `snapshot` holds the snapshot's entry `code` alone.
    """

    run_id: str
    stage: str
    variants: tuple[str, ...]
    corpus: str
    fold: int | None
    seed: int
    depends_on: tuple[str, ...] = ()
    state: str = "new"
    problem: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    snapshot: Mapping[str, Any] = field(default_factory=dict)
    predictions: Predictions | None = None
    remarks: Sequence[str] = ()  # damage that does not touch the numbers

    @property
    def label(self) -> str:
        """For people: `finetune crema_d fold 2 seed 0, all three`."""
        fold = "" if self.fold is None else f" fold {self.fold}"
        return f"{self.stage} {self.corpus}{fold} seed {self.seed}, {' = '.join(self.variants)} ({self.run_id})"

    @property
    def fingerprint(self) -> str:
        return str(self.config.get("data", {}).get("fingerprint", ""))


def read_run(runs_root: Path, run: StudyRun, selection: str, targets: Sequence[str] = ()) -> StudyRun:
    """The run with its record, or with the reason why its record does not count. `targets`: the corpus' regression targets."""
    record = RunRecord(runs_root / run.run_id)
    try:
        result = _object(record.path, "result.json") or record.result()
        if result is None:
            state = record.state()
            return replace(run, state=state, problem="not launched yet" if state == "new" else f"not done ({state})")
        code = {"code": (_object(record.path, "snapshot.json") or record.snapshot()).get("code", {})}
        run = replace(run, state="done", result=result, config=_config(record), snapshot=code, remarks=_remarks(record))
        if run.stage == "pretrain":
            return run
        predictions = read_predictions(record.path / "predictions.parquet", selection, targets)
        _agree(run, predictions, selection)
    except HicmaeError as error:
        problem = str(error).replace(f"{record.path}/", "")  # where the runs lie is no part of a report
        return replace(run, state="done", problem=problem)
    except (TypeError, KeyError, AttributeError, ValueError) as error:  # entries of another kind than a run writes
        return replace(run, state="done", problem=f"damaged record ({type(error).__name__}: {error})")
    return replace(run, predictions=predictions)


def _remarks(record: RunRecord) -> list[str]:
    """A finished run ends its lines; a file that does not, or is missing, was damaged afterwards."""
    found = {name: _end_of_lines(f"{record.path}/{name}") for name in ("metrics.jsonl", "events.jsonl")}
    return [f"{name}: {why}; the numbers of the tables do not come from it" for name, why in found.items() if why]


def _end_of_lines(path: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            return "" if size and os.pread(descriptor, 1, size - 1) == b"\n" else "is empty or ends in half a line"
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"unreadable ({error.strerror or error})"


def _object(folder: Path, name: str) -> dict[str, Any] | None:
    """A JSON object, read as quickly as can be; None where it is missing or damaged, which the record's own reader explains."""
    try:
        with open(f"{folder}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - thousands of times
            values = json.loads(file.read())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _config(record: RunRecord) -> dict[str, Any]:
    """config.json, checked. Raises RecordError or ConfigError when it is missing, damaged or not this run's."""
    try:
        values = _object(record.path, "config.json") or {}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
        is_own = hashlib.sha256(text.encode()).hexdigest()[:RUN_ID_LENGTH] == record.id
        if is_own and _field_names(values) == _known_fields(values["stage"]):
            return dict(values)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # the slow way says what is wrong
    return to_dict(record.config())


def _field_names(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part.keys() if isinstance(part, dict) else None for name, part in values.items()}


@cache
def _known_fields(stage: str) -> dict[str, Any]:
    return _field_names(to_dict(STAGES[stage]()))


def _agree(run: StudyRun, predictions: Predictions, selection: str) -> None:
    """Raise RecordError unless result, predictions and the study's enumeration tell the same story."""
    if run.result.get("run_id") != run.run_id:
        raise RecordError(f"result.json belongs to {run.result.get('run_id')}, not to {run.run_id}")
    data = run.config["data"]
    if (data["corpus"], data["fold"]) != (run.corpus, run.fold) or run.config["seed"] != run.seed:
        raise RecordError("config.json has another corpus, fold or seed than the study")
    if run.result.get("n_test", len(predictions)) != len(predictions) and not predictions.merged_tasks:
        raise RecordError(f"predictions.parquet has {len(predictions)} samples, result.json says {run.result['n_test']}")
    recorded = dict(run.result.get("metrics") or {}).get(selection) or {}
    kinds = dict.fromkeys(name.partition(" ")[0] for name in recorded)
    for metric, value in predictions.metrics([kind for kind in kinds if kind in METRICS]).items():
        # Written so that a recorded NaN disagrees.
        if not abs(value - recorded.get(metric, value)) <= TOLERANCE:
            raise RecordError(f"predictions.parquet gives {metric} {value:.2f}, result.json says {recorded[metric]:.2f}")
