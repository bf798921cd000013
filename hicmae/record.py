"""A run directory is the record of a run: written by the run alone, readable while it goes on, whole after any kill.

    runs/<run id>/config.json, snapshot.json, events.jsonl, metrics.jsonl, checkpoints/, predictions.parquet, result.json, log/

JSON files are written under a temporary name, synced and renamed. The two .jsonl files are append-only; a line torn by a
kill is passed over by readers. `result.json` is the completion record: its presence is what "done" means.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hicmae.config import RunConfig, from_dict, run_id, to_dict
from hicmae.errors import ConfigError, RecordError
from hicmae.whole import sync, written_whole

# What the states of a run mean, in the order in which a run passes through them.
STATES = ("new", "planned", "submitted", "running", "interrupted", "failed", "blocked", "cancelled", "done")
_AFTER_EVENT = {
    "planned": "planned",
    "submitted": "submitted",
    "started": "interrupted",
    "checkpoint": "interrupted",
    "preempted": "interrupted",
    "failed": "failed",
    "blocked": "blocked",
    "cancelled": "cancelled",
    "finished": "interrupted",
}


def runs_root() -> Path:
    """Where run directories live: $HICMAE_RUNS, else ./runs."""
    return Path(os.environ.get("HICMAE_RUNS", "runs"))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all: temporary name, fsync, rename."""
    with written_whole(path) as temporary, temporary.open("w") as file:
        json.dump(values, file, indent=1, sort_keys=True, allow_nan=False)
        sync(file)


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append one JSON line with a single write, starting a new line first if an earlier write was torn."""
    line = json.dumps(values, sort_keys=True, allow_nan=False).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of an append-only file; lines torn by a kill or a full disk are passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if isinstance(values, dict):
                yield values


@dataclass(frozen=True)
class RunRecord:
    """The record at `path`. Reading never writes; `path` need not exist for `state` and the readers."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @classmethod
    def create(cls, root: Path, config: RunConfig) -> RunRecord:
        """Make (or find) the directory of a configuration and write config.json once."""
        record = cls(root / run_id(config))
        (record.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        (record.path / "log").mkdir(exist_ok=True)
        if not (record.path / "config.json").exists():
            write_json(record.path / "config.json", to_dict(config))
        return record

    def config(self) -> RunConfig:
        """The resolved configuration. Raises RecordError when it is missing, damaged, not this run's, or now refused."""
        try:
            config = from_dict(self._json("config.json"))
        except ConfigError as error:
            raise RecordError(f"{self.path}/config.json: {error}") from None
        if run_id(config) != self.id:
            raise RecordError(
                f"{self.path}/config.json: does not hash to {self.id}; the record was edited or made by another version"
            )
        return config

    def snapshot(self) -> dict[str, Any]:
        """Code, environment, data, seeds, hardware, launch; empty before the run has started."""
        return self._json("snapshot.json") if (self.path / "snapshot.json").exists() else {}

    def result(self) -> dict[str, Any] | None:
        """The completion record, or None while the run is not done. Raises RecordError when damaged."""
        return self._json("result.json") if (self.path / "result.json").exists() else None

    def events(self) -> list[dict[str, Any]]:
        return list(read_lines(self.path / "events.jsonl"))

    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary per logged point, in step order; a point logged again after a resume counts once, as logged last."""
        points: dict[tuple[str, int], dict[str, Any]] = {}
        for line in read_lines(self.path / "metrics.jsonl"):
            if isinstance(line.get("step"), int) and "split" in line:
                points[str(line["split"]), line["step"]] = line
        return [points[key] for key in sorted(points, key=lambda key: key[1])]

    def append_event(self, event: str, **details: Any) -> None:
        """Add to events.jsonl: planned, submitted, started, checkpoint, preempted, failed, blocked, cancelled or finished."""
        append_line(self.path / "events.jsonl", {"event": event, "time": time.time(), **details})

    def append_metrics(self, split: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Add one point; `split` is train, validation, test or system, `epoch` counts finished epochs."""
        point = {"split": split, "step": step, "epoch": epoch, "time": time.time(), "values": dict(values)}
        append_line(self.path / "metrics.jsonl", point)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the completion record; everything else of the record must be on disk by then."""
        write_json(self.path / "result.json", {"run_id": self.id, **result})
        self.append_event("finished")

    def lock(self) -> FileLock:
        """Held by the process that executes the run; the operating system frees it when that process dies."""
        return FileLock(str(self.path / ".lock"), timeout=0)

    def is_locked(self) -> bool:
        """Whether a living process on this machine executes the run."""
        if not (self.path / ".lock").exists():
            return False
        try:
            with self.lock():
                return False
        except Timeout:
            return True

    def state(self) -> str:
        """One of STATES, from the directory alone; the scheduler's view is added by the caller."""
        if (self.path / "result.json").exists():
            return "done"
        state = "new"
        for event in self.events():
            state = _AFTER_EVENT.get(str(event.get("event")), state)
        return "running" if state != "new" and self.is_locked() else state

    def _json(self, name: str) -> dict[str, Any]:
        try:
            values = json.loads((self.path / name).read_text())
        except FileNotFoundError:
            raise RecordError(f"{self.path}/{name}: missing; this is not a complete run directory") from None
        except (OSError, ValueError) as error:
            raise RecordError(f"{self.path}/{name}: unreadable ({error})") from None
        if not isinstance(values, dict):
            raise RecordError(f"{self.path}/{name}: is not a JSON object")
        return values
