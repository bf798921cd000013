"""What a run's result depends on beside its configuration: code, environment, data, seeds, hardware, launch.

    python -c "import json; from hicmae import provenance; print(json.dumps(provenance.code(), indent=1))"

Environment variables are never recorded as a whole: of them, only the scheduler's numbers of the job.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import hicmae
from hicmae.config import RunConfig

ROOT = Path(hicmae.__file__).resolve().parent.parent
PACKAGES = ("hicmae", "experiments", "ablations", "slurm", "reports")
KEPT = "snapshot.json"
_SCHEDULER = (
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_JOB_PARTITION",
    "SLURM_CLUSTER_NAME",
)
_DIFF_LIMIT = 200_000  # characters of the code's difference that are kept


def snapshot(config: RunConfig, fingerprint: str, processes: int) -> dict[str, Any]:
    """Everything of a launch that goes into snapshot.json."""
    return {
        "code": code(),
        "environment": environment(),
        "data": {"corpus": config.data.corpus, "fingerprint": fingerprint},
        "seeds": {"seed": config.seed, "rule": "hicmae.seeding.derive(seed, purpose, position)"},
        "hardware": hardware(),
        "launch": launch(processes),
    }


def code(root: Path = ROOT) -> dict[str, Any]:
    """The commit (None outside a repository), whether files differ from it and how, and a hash of the source as it is."""
    if (root / KEPT).exists():  # a copy that a launch made for its runs, which says what it is a copy of
        kept = json.loads((root / KEPT).read_text())
        names = ("commit", "parent", "dirty", "changed", "diff")
        return {"version": hicmae.__version__, **{name: kept.get(name) for name in names}, "tree": source_digest(root)}
    is_repository = _git(root, "rev-parse", "--show-toplevel") == str(root)  # not that of somebody who installed the package
    commit = _git(root, "rev-parse", "HEAD") if is_repository else None
    status = _git(root, "status", "--porcelain") if is_repository else None
    difference = (_git(root, "diff", "HEAD") or "") if status else ""
    return {
        "version": hicmae.__version__,
        "commit": commit,
        "dirty": None if status is None else bool(status),
        "changed": [line[3:] for line in status.splitlines()] if status else [],
        "diff": difference[:_DIFF_LIMIT],
        "tree": source_digest(root),
    }


def source_digest(root: Path = ROOT) -> str:
    """The SHA-256 of the names and contents of all Python files of the project's packages below `root`."""
    digest = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """The interpreter and every installed distribution with its version."""
    found = {item.metadata["Name"]: item.version for item in metadata.distributions()}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found[name] for name in sorted(found, key=lambda name: str(name).lower()) if name},
    }


@cache
def dependencies(extras: bool = False) -> tuple[str, ...]:
    """The plain names of the distributions that the project depends on, as declared, or of those that its extras bring."""
    try:
        lines = metadata.requires("hicmae") or []
    except metadata.PackageNotFoundError:
        lines = []
    return tuple(plain_name(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in lines if ("extra ==" in line) == extras)


def plain_name(distribution: str) -> str:
    """The one spelling of a distribution's name: `PyYAML_Include` is `pyyaml-include`."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def hardware() -> dict[str, Any]:
    """Host, processors, memory and GPUs."""
    import psutil
    import torch

    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "host": platform.node(),
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [{"name": card.name, "memory_bytes": card.total_memory} for card in cards],
        "cuda": torch.version.cuda if cards else None,
        "threads": torch.get_num_threads(),
    }


def launch(processes: int) -> dict[str, Any]:
    """The command, when and as which job it was started."""
    job = {name.lower(): os.environ[name] for name in _SCHEDULER if name in os.environ}
    return {"command": [Path(sys.executable).name, *sys.argv], "time": time.time(), "processes": processes, "job": job}


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git(root: Path, *arguments: str) -> str | None:
    """What git answers, or None where it is missing or `root` is not in a repository."""
    command = ["git", "-C", str(root), "--no-optional-locks", *arguments]  # a status must not wait for, or take, the index lock
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
