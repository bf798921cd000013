"""What earlier reports read of runs, so that a report over thousands of them starts at once: a file in the user's cache folder.

    runs = Cache(runs_root, "ablation_hierarchical").read(runs, read)    # `read` is asked only for runs whose files changed

A run is known by size, times and inode of its files, by what the study wants of it and by the code that reads it. Only sound
runs are kept; damaged ones are read again each time. Where the file cannot be used, everything is read from the runs.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

import hicmae.config
import hicmae.metrics
import reports.predictions
import reports.recorded
from hicmae.waiting import mapped
from reports.predictions import Predictions
from reports.recorded import StudyRun

FILES = ("result.json", "config.json", "snapshot.json", "metrics.jsonl", "events.jsonl", "predictions.parquet")
_ARRAYS = ("sample_ids", "groups", "truth", "answers")
_TABLES = (
    "CREATE TABLE IF NOT EXISTS runs (run_id TEXT PRIMARY KEY, stamp TEXT, record TEXT)",
    "CREATE TABLE IF NOT EXISTS arrays (digest TEXT PRIMARY KEY, dtype TEXT, shape TEXT, data BLOB)",
)
Array = NDArray[Any]
Reader = Callable[[StudyRun], StudyRun]


class Cache:
    """The runs of one study. Equal arrays (the test lists that runs share) are one array in memory and in the file."""

    def __init__(self, runs_root: Path, study: str, about: Sequence[str] = ()) -> None:
        """`about` is what else the outcome of reading depends on, such as the selection rule."""
        self._root, self._about = runs_root, json.dumps([*about, _code()])
        place = hashlib.sha256(f"{runs_root.resolve()}\0{study}".encode()).hexdigest()[:24]
        self._path = user_cache_path("hicmae") / "reports" / f"{place}.sqlite"
        self._arrays: dict[str, Array] = {}
        self._digests: dict[int, str] = {}

    def read(self, runs: Iterable[StudyRun], read: Reader) -> list[StudyRun]:
        """Every run with its record, in the given order."""
        runs = list(runs)
        stamps = [self._stamp(run) for run in runs]
        known = self._known()
        kept = [known[r.run_id][1] if s and known.get(r.run_id, ("",))[0] == s else "" for r, s in zip(runs, stamps, strict=True)]
        with _no_collection():
            fresh = mapped(read, [run for run, record in zip(runs, kept, strict=True) if not record])
            found = [
                self._restored(run, record) if record else self._shared(next(fresh))
                for run, record in zip(runs, kept, strict=True)
            ]
        new = [(run, s) for run, s, record in zip(found, stamps, kept, strict=True) if s and not record and not run.problem]
        self._keep(new)  # a file that changed after it was looked at has another stamp next time
        return found

    def _stamp(self, run: StudyRun) -> str:
        """What the run's files look like and what is asked of them; empty for a run that is not done."""
        seen, folder = [], f"{self._root}/{run.run_id}"
        for name in FILES:
            try:
                about = os.stat(f"{folder}/{name}")  # noqa: PTH116 - six of thousands of runs: paths cost more than the look
            except OSError:
                if name == "result.json":
                    return ""
                continue
            seen.append(f"{name} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns} {about.st_ino}")
        return "\n".join([self._about, run.stage, run.corpus, str(run.fold), str(run.seed), *seen])

    def _known(self) -> dict[str, tuple[str, str]]:
        """run id -> stamp and record, as kept."""
        if not self._path.exists():
            return {}
        try:
            with _opened(self._path) as file:
                for digest, dtype, shape, data in file.execute("SELECT digest, dtype, shape, data FROM arrays"):
                    self._arrays[digest] = np.frombuffer(data, dtype=dtype).reshape(json.loads(shape))
                return {run_id: (stamp, record) for run_id, stamp, record in file.execute("SELECT * FROM runs")}
        except (sqlite3.Error, OSError, ValueError, TypeError):
            self._path.unlink(missing_ok=True)  # damaged: it is made anew
            return {}

    def _restored(self, run: StudyRun, record: str) -> StudyRun:
        kept = json.loads(record)
        predictions = None
        if kept["predictions"]:
            ids, groups, truth, answers = (self._arrays[digest] for digest in kept["predictions"]["arrays"])
            targets, merged = tuple(kept["predictions"]["targets"]), kept["predictions"]["merged_tasks"]
            predictions = Predictions(ids, groups, truth, answers, targets, merged, kept["predictions"]["values"])
        names = ("result", "config", "snapshot", "remarks")
        return replace(run, state="done", predictions=predictions, **{name: kept[name] for name in names})

    def _shared(self, run: StudyRun) -> StudyRun:
        if run.predictions is None:
            return run
        ids, groups, truth, answers = (self._one(getattr(run.predictions, name)) for name in _ARRAYS)
        shared = replace(run.predictions, sample_ids=ids, groups=groups, truth=truth, answers=answers)
        return replace(run, predictions=shared)

    def _one(self, array: Array) -> Array:
        digest = _digest(array)
        kept = self._arrays.setdefault(digest, array)
        self._digests[id(kept)] = digest  # kept arrays stay, and so do their numbers
        return kept

    def _keep(self, runs: Sequence[tuple[StudyRun, str]]) -> None:
        """Write runs down; what cannot be written is read again next time."""
        if not runs:
            return
        used: set[str] = set()
        rows = [(run.run_id, stamp, json.dumps(self._record(run, used))) for run, stamp in runs]
        arrays = [(digest, self._arrays[digest]) for digest in used]
        blobs = [(digest, a.dtype.str, json.dumps(a.shape), np.ascontiguousarray(a).tobytes()) for digest, a in arrays]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _opened(self._path) as file:
                for statement in _TABLES:
                    file.execute(statement)
                file.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", rows)
                file.executemany("INSERT OR IGNORE INTO arrays VALUES (?, ?, ?, ?)", blobs)
        except (sqlite3.Error, OSError):
            return

    def _record(self, run: StudyRun, used: set[str]) -> dict[str, Any]:
        """The run as JSON; digests of its arrays are added to `used`."""
        kept: dict[str, Any] = {name: getattr(run, name) for name in ("result", "config", "snapshot", "remarks")}
        if run.predictions is None:
            return {**kept, "predictions": None}
        digests = [self._digests[id(getattr(run.predictions, name))] for name in _ARRAYS]
        used.update(digests)
        about = {name: getattr(run.predictions, name) for name in ("targets", "merged_tasks", "values")}
        return {**kept, "predictions": {"arrays": digests, **about}}


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without looking for garbage, of which reading makes none: the search goes through all that was read, again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The file in one transaction."""
    connection = sqlite3.connect(path, timeout=5.0)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


def _digest(array: Array) -> str:
    about = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.blake2b(about + np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()


@cache
def _code() -> str:
    """What has read the runs: a change of the code that reads makes everything be read again."""
    modules = (hicmae.config, hicmae.metrics, reports.predictions, reports.recorded)
    texts = [Path(str(module.__file__)).read_bytes() for module in modules] + [Path(__file__).read_bytes()]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:16]
