"""The state of many runs at once: from their directories, and from one question to the scheduler for those that it holds."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hicmae.record import RunRecord

# States of hicmae.record, and `unknown`: somebody else may be working on the run and does not answer.
ACTIVE = ("submitted", "running", "unknown")
QUIET_S = 600.0  # a run on another machine that wrote nothing for so long may be dead


@dataclass(frozen=True)
class RunState:
    """What is known of a run without reading its metrics."""

    run_id: str
    state: str
    reason: str = ""
    host: str = ""
    attempts: int = 0

    @property
    def is_active(self) -> bool:
        """Whether somebody works on it, or may do so."""
        return self.state in ACTIVE


def read_states(runs_root: Path, run_ids: Iterable[str]) -> dict[str, RunState]:
    """The states of runs, in the given order. A run that is done costs one look at its directory."""
    wanted = list(run_ids)
    existing = {path.name for path in runs_root.iterdir()} if runs_root.is_dir() else set()
    return {run_id: _read(runs_root / run_id) if run_id in existing else RunState(run_id, "new") for run_id in wanted}


def _read(path: Path) -> RunState:
    if (path / "result.json").exists():
        return RunState(path.name, "done")
    record = RunRecord(path)
    events = record.events()
    starts = [event for event in events if event.get("event") == "started"]
    host = str(starts[-1].get("host", "")) if starts else ""
    state = record.state()
    reason = _reason(events, state)
    if state == "interrupted" and host not in ("", socket.gethostname()) and events[-1].get("event") in ("started", "checkpoint"):
        state, reason = _elsewhere(path, host)
    return RunState(path.name, state, reason, host, len(starts))


def _reason(events: list[dict[str, Any]], state: str) -> str:
    """Why a run is not going on, in the words of the event that says so."""
    last = next((event for event in reversed(events) if event.get("reason")), None)
    if state in ("failed", "blocked", "cancelled"):
        return str(last["reason"]) if last else ""
    if state == "interrupted":
        preempted = events and events[-1].get("event") == "preempted"
        return "asked to stop" if preempted else "its process ended without a word"
    return ""


def _elsewhere(path: Path, host: str) -> tuple[str, str]:
    """A run last started on another machine, whose lock cannot be seen from here: judged by when it last wrote."""
    written = max((file.stat().st_mtime for file in path.glob("*.jsonl")), default=0.0)
    quiet_s = time.time() - written
    if quiet_s < QUIET_S:
        return "running", f"on {host}"
    return "unknown", f"started on {host}, which has written nothing for {quiet_s / 60:.0f} min"
