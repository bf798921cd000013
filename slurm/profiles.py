"""Cluster profiles: what a job asks for, from TOML; the shipped examples and the user's own `slurm.toml`."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import platformdirs

from hicmae.config import STAGES
from hicmae.errors import UsageError, raise_unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = Path(__file__).with_name("profiles.toml")


@dataclass(frozen=True)
class Profile:
    """What the jobs of one stage ask of a cluster; None and zero ask for nothing."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int | None = None  # processes of a run on a node: one per GPU, else one
    cpus_per_task: int = 2
    memory_gb: float = 4.0  # of a node
    max_memory_gb: float | None = None  # after attempts that ran out of memory; eight times memory_gb unless given
    time_h: float = 24.0
    signal_delay_s: int = 120  # before the time limit, for the checkpoint
    max_requeues: int = 20  # after the time limit
    max_parallel: int | None = None  # runs at once, over all arrays of a launch; of a stage alone where the stages' differ
    array_size: int | None = None  # tasks of an array; the cluster's MaxArraySize unless given
    setup: tuple[str, ...] = ()  # lines of the job script
    srun_args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    python: str | None = None  # command; this interpreter unless given

    @property
    def tasks(self) -> int:
        """Processes of a run on a node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    def memory_after(self, failures: int) -> float:
        """Gigabytes for a node after so many attempts that ran out of memory."""
        limit = self.max_memory_gb or 8 * self.memory_gb
        return min(self.memory_gb * 2**failures, max(limit, self.memory_gb))


def user_file() -> Path:
    """Where a user keeps profiles of one's own."""
    return platformdirs.user_config_path("hicmae") / "slurm.toml"


def find(name: str) -> dict[str, Profile]:
    """The profile of each stage. Raises UsageError for unknown names and fields (nearest first) and for wrong values."""
    sections = {**_read(SHIPPED), **_read(user_file())}
    if name not in sections:
        raise_unknown("profile", name, sections)
    section = dict(sections[name])
    overrides = {stage: section.pop(stage, {}) for stage in STAGES}
    return {stage: _profile(name, {**section, **overrides[stage]}) for stage in STAGES}


def as_json(profile: Profile) -> dict[str, Any]:
    """What is recorded of a submission; setup lines and environment are the cluster's business and stay out."""
    values = asdict(profile)
    return {name: value for name, value in values.items() if name not in ("setup", "environment", "srun_args") and value}


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: unreadable ({error}); see the examples in {SHIPPED}") from None


def _profile(name: str, values: Mapping[str, Any]) -> Profile:
    known = {item.name: item for item in fields(Profile)}
    for key, value in values.items():
        if key not in known:
            raise_unknown(f"field of profile {name}", key, known)
        _check(name, key, value)
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    profile = Profile(**plain)
    for key, value in plain.items():
        if key in _MORE_THAN_0 and not value > 0:
            raise UsageError(f"profile {name}: {key} = {value}: must be more than 0")
        low, high = _LIMITS.get(key, (-math.inf, math.inf))
        if key in _LIMITS and not low <= value <= high:
            allowed = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise UsageError(f"profile {name}: {key} = {value}: must be {allowed}")
    for variable in profile.environment:
        if not _VARIABLE.fullmatch(variable):
            raise UsageError(f"profile {name}: environment: {variable!r}: a name has letters, digits and _, and no digit first")
    return profile


_MORE_THAN_0 = ("nodes", "cpus_per_task", "memory_gb", "max_memory_gb", "time_h")
_LIMITS: dict[str, tuple[int, float]] = {
    "gpus_per_node": (0, math.inf),
    "tasks_per_node": (1, math.inf),
    "signal_delay_s": (0, 65535),  # SLURM's own limit
    "max_requeues": (0, math.inf),
    "max_parallel": (1, math.inf),
    "array_size": (1, math.inf),
}
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_KINDS: dict[str, tuple[type, ...]] = {
    "str | None": (str,),
    "int": (int,),
    "int | None": (int,),
    "float": (int, float),
    "float | None": (int, float),
    "tuple[str, ...]": (list,),
    "Mapping[str, str]": (dict,),
}


def _check(name: str, key: str, value: Any) -> None:
    kind = next(str(item.type) for item in fields(Profile) if item.name == key)
    words = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    if not isinstance(value, _KINDS[kind]) or isinstance(value, bool) or not all(isinstance(word, str) for word in words):
        raise UsageError(f"profile {name}: {key} = {value!r}: must be of type {kind}")
