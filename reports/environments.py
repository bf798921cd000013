"""The packages that a study's runs had, as its archive has them, and how they differ from the exporter's lock file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.markers import Marker

from experiments import recorded_code
from hicmae.provenance import plain_name
from hicmae.tracking.files import environment

FOLDER, LOCK = "environments", "requirements.lock"
_SHOWN = 4  # packages in a note
_PINNED = re.compile(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;\\]+)(?:\s*;\s*([^\\\n]+))?", re.MULTILINE)


def of_runs(runs_root: Path, run_ids: Sequence[str], lock: str) -> tuple[dict[str, bytes], list[str]]:
    """A file for each environment among the runs; and in words how these differ from the text of a lock file."""
    runs: dict[str, list[str]] = {}
    pythons: dict[str, str] = {}
    for run_id in run_ids:
        snapshot = recorded_code.snapshot(runs_root / run_id)
        known = snapshot.get("environment") or {}
        if known.get("packages"):
            text = environment(snapshot)
            runs.setdefault(text, []).append(run_id)
            pythons[text] = str(known.get("python", ""))
    notes = [f"the runs had {len(runs)} different environments; {FOLDER}/ has each with its runs"] if len(runs) > 1 else []
    files: dict[str, bytes] = {}
    for text, ids in runs.items():
        name = f"{FOLDER}/{hashlib.sha256(text.encode()).hexdigest()[:12]}.txt"
        files[name] = f"{text}# runs: {' '.join(sorted(ids))}\n".encode()
        if other := _other_versions(text, pinned(lock, pythons[text])):
            shown = "; ".join(other[:_SHOWN]) + (f"; and {len(other) - _SHOWN} more" if len(other) > _SHOWN else "")
            notes.append(f"{LOCK} is the exporter's, {name} that of {len(ids)} runs; they differ: {shown}")
    return files, notes


def pinned(text: str, python: str = "") -> dict[str, str]:
    """package -> version, of a lock file's lines for a version of Python (none: all lines) on a machine like this one."""
    about = {"python_full_version": python, "python_version": ".".join(python.split(".")[:2])}
    return {
        plain_name(name): version
        for name, version, marker in _PINNED.findall(text)
        if not marker or not python or Marker(marker.strip()).evaluate(about)
    }


def _other_versions(packages: str, locked: Mapping[str, str]) -> list[str]:
    then = pinned(packages)
    return [
        f"{name} {then[name]} in the runs, {locked[name]} in the lock file"
        for name in then
        if locked.get(name, then[name]) != then[name]
    ]
