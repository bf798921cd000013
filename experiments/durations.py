"""How long the runs of a folder took, and what they were: the ground of predictions.

Two files are read of every finished run, once: what they say is kept in a file of the user's cache, for it does not change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import platformdirs

from hicmae.config import RunConfig, to_dict
from hicmae.record import write_json

# What does not change how long a run takes.
_SHAPELESS = ("seed", "data.fold", "data.fingerprint", "initial.reference", "initial.source", "initial.epoch", "keep_epochs")
_VERSION = 2  # of the cache


@dataclass(frozen=True)
class Took:
    """What a run took: hours of GPUs (device `gpu`) or of cores (`cpu`), and seconds by the clock."""

    shape: str
    device: str
    hours: float
    wall_s: float


def shape_of(config: RunConfig) -> str:
    """A key of all fields that decide how long a run takes: runs of equal shape are compared."""
    return _shape(to_dict(config))


def recorded(runs_root: Path) -> Iterator[Took]:
    """What every finished run of a folder took. Runs whose files cannot be read, or do not tell, are passed over."""
    cache = _cache(runs_root)
    before = _read(cache).get("runs", {})
    now: dict[str, list[Any]] = {}
    for result in runs_root.glob("[0-9a-f]*/result.json"):
        with contextlib.suppress(OSError):  # removed meanwhile
            name, stamp = result.parent.name, result.stat().st_mtime_ns
            known = before.get(name)
            if known and known[0] == stamp:
                now[name] = known
            elif facts := _facts(result):
                now[name] = [stamp, *facts]
    if now != before:
        with contextlib.suppress(OSError):  # without a cache it only takes longer
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_json(cache, {"version": _VERSION, "runs": now})
    return (Took(*values[1:]) for values in now.values())


def _facts(result: Path) -> tuple[Any, ...]:
    """The fields of Took; nothing for a run that does not tell."""
    values, config = _read(result), _read(result.with_name("config.json"))
    wall_s, gpu_hours, cpu_hours = (values.get(name) for name in ("wall_s", "gpu_hours", "cpu_hours"))
    if not config or not isinstance(wall_s, (int, float)):
        return ()
    if gpu_hours:
        return astuple(Took(_shape(config), "gpu", float(gpu_hours), float(wall_s)))
    return astuple(Took(_shape(config), "cpu", float(cpu_hours or wall_s / 3600), float(wall_s)))


def _shape(config: Mapping[str, Any]) -> str:
    fields = {name: value for name, value in _flat(config) if name not in _SHAPELESS}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _cache(runs_root: Path) -> Path:
    name = hashlib.sha256(str(runs_root.absolute()).encode()).hexdigest()[:16]
    return platformdirs.user_cache_path("hicmae") / "durations" / f"{name}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) and values.get("version", _VERSION) == _VERSION else {}
