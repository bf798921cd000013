"""The code that a recorded run was executed from: among the copies of `runs/_code`, else from git, else refused.

A run records the SHA-256 of its source (`snapshot.json`, code.tree); a folder is the run's code when it has that digest, whatever
its name and whoever made it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hicmae.errors import HicmaeError
from hicmae.provenance import source_digest
from hicmae.record import RunRecord
from slurm import code

_COMMIT = re.compile(r"[0-9a-f]{7,64}")


def copies(runs_root: Path) -> dict[str, Path]:
    """The copies of code that launches left below `runs_root`, by the digest of their source."""
    folders = (path for path in sorted((runs_root / code.FOLDER).glob("[0-9a-f]*")) if path.is_dir())
    return {source_digest(folder): folder for folder in folders}


def restore(runs_root: Path, snapshot: Mapping[str, Any], run_id: str) -> Path:
    """The folder with a run's code; made from git where no copy is left. Raises HicmaeError with the remedy."""
    recorded = snapshot.get("code") or {}
    wanted, commit = str(recorded.get("tree") or ""), str(recorded.get("commit") or "")
    found = copies(runs_root).get(wanted)
    if found is None and wanted and source_digest() == wanted:  # executed from this very code, without a launch
        found = code.take(runs_root).path
    if found is None and _COMMIT.fullmatch(commit):
        taken = code.of_commit(runs_root, commit)
        found = taken.path if taken and source_digest(taken.path) == wanted else None
    if found is None:
        raise HicmaeError(
            f"run {run_id}: its code (commit {commit[:12] or 'unknown'}{', changed' if recorded.get('dirty') else ''}, source "
            f"{wanted[:12] or 'unknown'}) is neither in {runs_root / code.FOLDER} nor in git here; copy that folder from where "
            "it was launched, or fetch the commit"
        )
    return found


def of_runs(runs_root: Path, run_ids: Iterable[str]) -> tuple[list[Path], dict[str, str]]:
    """The folders with the code of all runs that were executed, and by run id the reason where nobody has it."""
    known: dict[str, Path | str] = {}
    used: dict[str, Path | str] = {}
    for run_id in run_ids:
        found = snapshot(runs_root / run_id)
        tree = str((found.get("code") or {}).get("tree"))
        if found and tree not in known:
            known[tree] = _folder_or_reason(runs_root, found, run_id)
        used |= {run_id: known[tree]} if found else {}
    folders = sorted({place for place in used.values() if isinstance(place, Path)})
    return folders, {run_id: place for run_id, place in used.items() if isinstance(place, str)}


def snapshot(path: Path) -> dict[str, Any]:
    """A run's snapshot; empty before the run has begun, and when it is damaged: reports say so."""
    try:
        return RunRecord(path).snapshot()
    except HicmaeError:
        return {}


def _folder_or_reason(runs_root: Path, snapshot: Mapping[str, Any], run_id: str) -> Path | str:
    try:
        return restore(runs_root, snapshot, run_id)
    except HicmaeError as error:
        return str(error)
