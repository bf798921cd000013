"""Recorded runs by what people call them: a study's name, a run id or its beginning."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments import study_file
from experiments.experiment import Run
from hicmae.errors import RecordError, UsageError, nearest_first
from hicmae.record import RunRecord
from slurm.state import in_use

SUGGESTIONS = 5


def run_directories(runs_root: Path) -> list[Path]:
    """All run directories: those that hold a configuration."""
    return sorted(path.parent for path in runs_root.glob("[0-9a-f]*/config.json"))


def find_run(runs_root: Path, text: str) -> RunRecord:
    """The run of an id or of the beginning of one. Raises UsageError when there is none, or more than one."""
    ids = [path.name for path in run_directories(runs_root)]
    found = [run_id for run_id in ids if run_id.startswith(text)] if text else []
    if len(found) == 1:
        return RunRecord(runs_root / found[0])
    if found:
        raise UsageError(f"{text!r} begins {len(found)} run ids; write more of it: {', '.join(found[:SUGGESTIONS])}")
    nearest = ", ".join(nearest_first(text, ids)[:SUGGESTIONS]) or "(no runs there)"
    raise UsageError(f"unknown run {text!r} in {runs_root}; nearest: {nearest}")


def find_many(runs_root: Path, text: str) -> list[RunRecord]:
    """The runs of a study, or the one run of an id."""
    if text in study_file.studies(runs_root):
        rows = study_file.read(runs_root, text)["runs"]
        return [RunRecord(runs_root / row["run_id"]) for row in rows]
    if text and all(letter in "0123456789abcdef" for letter in text):
        return [find_run(runs_root, text)]
    study_file.read(runs_root, text)  # says which studies there are
    raise AssertionError("unreachable: the study does not exist")


def recorded_run(runs_root: Path, study: str, row: dict[str, Any]) -> Run:
    """A run as a study file has it, with its recorded configuration. Raises RecordError when that is damaged."""
    config = RunRecord(runs_root / row["run_id"]).config()
    place = {key: row[key] for key in ("run_id", "corpus", "fold", "seed")}
    return Run(config=config, experiment=study, variants=tuple(row["variants"]), depends_on=tuple(row["depends_on"]), **place)


@dataclass(frozen=True)
class Waste:
    """Files that could be removed, and why."""

    paths: tuple[Path, ...]
    why: str

    @cached_property
    def bytes(self) -> int:
        return sum(_bytes(path) for path in self.paths)

    def remove(self, still: Collection[Path]) -> int:
        """Remove what is waste still; returns the bytes that it had."""
        removed = 0
        for path in (path for path in self.paths if path in still):
            removed += _bytes(path)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return removed


def orphans(runs_root: Path) -> tuple[Waste, dict[str, str]]:
    """Run directories that no study names, and the others of them, which somebody may be working on, with why.

    Runs of a study's earlier selections (`--corpus`, `--seed`, `--size`) are named too, and so is what any of them started from.
    """
    rows = [row for name in study_file.studies(runs_root) for row in study_file.rows(study_file.read(runs_root, name))]
    named = {run_id for row in rows for run_id in (row["run_id"], *row["depends_on"])}
    paths = [path for path in run_directories(runs_root) if path.name not in named]
    spared = in_use(runs_root, [path.name for path in paths])
    return Waste(tuple(path for path in paths if path.name not in spared), "runs that no study names"), spared


def spent_checkpoints(runs_root: Path) -> Waste:
    """The resume points of finished runs; final and kept weights (.safetensors) stay."""
    done = [path for path in run_directories(runs_root) if (path / "result.json").exists()]
    paths = [item for run in done for item in (run / "checkpoints").glob("*") if item.suffix != ".safetensors"]
    return Waste(tuple(paths), "resume points of finished runs")


def repeats(runs_root: Path) -> Waste:
    """What `hicmae reproduce` made and nobody works on; verdicts go with the repeats, the recorded runs stay."""
    folders = [path for path in sorted((runs_root / "_reproduced").glob("*/*")) if path.is_dir()]
    busy = {folder for folder in folders for run in folder.iterdir() if not run.is_symlink() and RunRecord(run).is_locked()}
    return Waste(tuple(folder for folder in folders if folder not in busy), "repeats of `hicmae reproduce`")


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file())


def read_log(record: RunRecord, attempt: int | None) -> Path:
    """The log of an attempt, the last one by default. Raises UsageError for an attempt that was not made."""
    from slurm.local import logs_of

    logs = {int(path.stem.partition("-")[2]): path for path in logs_of(record.path)}
    if not logs:
        raise RecordError(f"{record.path}: no attempt was made yet, so there is no log; see `hicmae status`")
    if attempt is not None and attempt not in logs:
        raise UsageError(f"run {record.id} has no attempt {attempt}; valid: {', '.join(map(str, logs))}")
    return logs[max(logs) if attempt is None else attempt]
