"""The record of submitted arrays: `runs/_slurm/<name>/array.json` before submission, `job.json` with the job's id after it.

A launcher killed between the two leaves an array whose name can be looked up: submitted or not, it is never submitted twice.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hicmae.errors import HicmaeError, RecordError, UsageError
from hicmae.record import RunRecord, write_json

FOLDER = "_slurm"
LOCK_S = 600  # of patience with another launcher


@contextmanager
def launching(runs_root: Path) -> Iterator[None]:
    """Held while states are read and acted upon, so that two launchers never both find a run without a master."""
    runs_root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(str(runs_root / ".launching.lock"), timeout=LOCK_S):
            yield
    except Timeout:
        raise HicmaeError(f"another launcher has been at work in {runs_root} for {LOCK_S} s; try again later") from None


@dataclass(frozen=True)
class Array:
    """Runs that were, or are about to be, submitted together; a run's task index is its place in `run_ids`."""

    name: str
    folder: Path
    run_ids: tuple[str, ...]
    created: float
    resources: Mapping[str, Any]

    @property
    def job_id(self) -> str | None:
        """The scheduler's id; None when the launcher did not live to write it down."""
        path = self.folder / "job.json"
        return str(json.loads(path.read_text())["job_id"]) if path.exists() else None

    def set_job_id(self, job_id: str) -> None:
        write_json(self.folder / "job.json", {"job_id": job_id})


def create(runs_root: Path, label: str, run_ids: Sequence[str], resources: Mapping[str, Any]) -> Array:
    """Record the intent to submit: the array's own folder first, then a word in every run's record."""
    unspeakable = {"%", "\n"} & set(str(runs_root.absolute()))
    if unspeakable:
        raise UsageError(f"{str(runs_root)!r}: a folder with {unspeakable.pop()!r} in its name cannot hold SLURM's job scripts")
    name = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', label)[:40]}-{secrets.token_hex(4)}"
    folder = (runs_root / FOLDER / name).absolute()
    folder.mkdir(parents=True, mode=0o700)  # scripts of one's own, that nobody else may change
    array = Array(name, folder, tuple(run_ids), time.time(), resources)
    _write(array)
    for index, run_id in enumerate(run_ids):
        RunRecord(runs_root / run_id).append_event("submitted", array=name, index=index, resources=dict(resources))
    return array


def forget_arguments(array: Array) -> None:
    """Take the arguments of an array's tasks out of its record, once they are not needed any more."""
    _write(replace(array, resources={**array.resources, "arguments": []}))


def read(runs_root: Path, name: str) -> Array:
    """A recorded array. Raises RecordError when its record is missing or damaged."""
    folder = (runs_root / FOLDER / name).absolute()
    try:
        values = json.loads((folder / "array.json").read_text())
        return Array(name, folder, tuple(values["run_ids"]), float(values["created"]), values["resources"])
    except (OSError, ValueError, KeyError) as error:
        raise RecordError(f"{folder}/array.json: unreadable ({error}); launch again to submit its runs anew") from None


def serving(runs_root: Path, search: str) -> list[Array]:
    """The arrays of a search's workers, those that submit them again first; `search` may name all of its outer folds."""
    found = [read(runs_root, path.parent.name) for path in (runs_root / FOLDER).glob("*/array.json")]
    wanted = re.compile(rf"{re.escape(search)}(_fold\d+)?")
    kinds = ("keeper_of", "workers_of")
    return [array for kind in kinds for array in found if any(wanted.fullmatch(name) for name in array.resources.get(kind, ()))]


def _write(array: Array) -> None:
    values = {"name": array.name, "run_ids": list(array.run_ids), "created": array.created, "resources": dict(array.resources)}
    write_json(array.folder / "array.json", values)
