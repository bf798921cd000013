"""The state of many runs at once: from their directories, and from one question to the scheduler for those that it holds."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hicmae.record import RunRecord
from slurm import arrays, scheduler
from slurm.local import last_line
from slurm.scheduler import JobInfo, SilentSchedulerError

# States of hicmae.record, and `unknown`: somebody else may be working on the run and does not answer.
ACTIVE = ("submitted", "running", "unknown")
QUIET_S = 600.0  # a run on another machine that wrote nothing for so long may be dead
SETTLING_S = 120.0  # a job may take so long to be listed after its submission
FULL_BYTES = 1 << 20  # with less free than this nothing can be expected to work
# How SLURM ends jobs that can go on from their checkpoint.
_CUT_OFF = {
    "TIMEOUT": "reached the time limit",
    "DEADLINE": "reached its deadline",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not start",
    "REVOKED": "revoked",
    "OUT_OF_MEMORY": "out of memory",
}
# What slurmstepd writes where SLURM has no state of its own for it (no cgroups).
_DROPPED = "DependencyNeverSatisfied"  # SLURM's word when it cancels what waited for a job that failed, or that it forgot
_MEMORY_WORDS = ("exceeded job memory limit", "exceeded step memory limit", "oom-kill", "out of memory")


@dataclass(frozen=True)
class RunState:
    """What is known of a run without reading its metrics."""

    run_id: str
    state: str
    reason: str = ""
    host: str = ""
    attempts: int = 0
    job: str = ""  # of the scheduler, ARRAYID_TASK
    cause: str = ""  # the scheduler's word for how the last job ended

    @property
    def is_active(self) -> bool:
        """Whether somebody works on it, or may do so."""
        return self.state in ACTIVE


@dataclass(frozen=True)
class Submission:
    """A run's place in the array that it was last submitted with."""

    array: str
    index: int
    time: float
    started: bool  # whether the run has begun since


def read_states(runs_root: Path, run_ids: Iterable[str], must_answer: bool = False) -> dict[str, RunState]:
    """The states of runs, in the given order. A run that is done costs one look at its directory.

    What a silent scheduler holds is `unknown`; with `must_answer`, its silence raises SilentSchedulerError.
    """
    wanted = list(run_ids)
    existing = {path.name for path in runs_root.iterdir()} if runs_root.is_dir() else set()
    states: dict[str, RunState] = {}
    submissions: dict[str, Submission] = {}
    for run_id in wanted:
        states[run_id], submission = _read(runs_root / run_id) if run_id in existing else (RunState(run_id, "new"), None)
        if submission is not None:
            submissions[run_id] = submission
    states.update(_with_scheduler(runs_root, states, submissions, must_answer))
    return states


def in_use(runs_root: Path, run_ids: Iterable[str]) -> dict[str, str]:
    """Runs that somebody works on or may work on, and why it may be so: what must not be removed.

    A submission counts until its end is recorded or the scheduler tells it; a run on another machine until it is cancelled.
    While the scheduler is silent, every run counts that is not done.
    """
    found = {run_id: _read(runs_root / run_id) for run_id in run_ids}
    submissions = {run_id: submission for run_id, (_, submission) in found.items() if submission is not None}
    try:
        answer = scheduler.ask({(item.array, item.index): item.time for item in submissions.values()})
    except SilentSchedulerError as silent:
        return {run_id: str(silent) for run_id, (state, _) in found.items() if state.state != "done"}
    used: dict[str, str] = {}
    for run_id, (state, _) in found.items():
        submission = submissions.get(run_id)
        info = answer.get((submission.array, submission.index)) if submission else None
        judged = judge(runs_root / run_id, state, submission, info) if submission else state
        if judged.is_active:
            used[run_id] = f"{judged.state} {judged.reason}".strip()
        elif RunRecord(runs_root / run_id).is_locked():
            used[run_id] = "a process holds its lock"
        elif submission and info is None:
            used[run_id] = "was submitted, and no end of its job is known"
    return used


def _read(path: Path) -> tuple[RunState, Submission | None]:
    """The state by the directory alone, and the submission that the scheduler must be asked about, if there is one."""
    if (path / "result.json").exists():
        return RunState(path.name, "done"), None
    record = RunRecord(path)
    events = record.events()
    starts = [event for event in events if event.get("event") == "started"]
    host = str(starts[-1].get("host", "")) if starts else ""
    state = record.state()
    found = RunState(path.name, state, _reason(events, state), host, len(starts))
    submission = _submission(events) if state in ("submitted", "running", "interrupted") else None
    at_work = state == "interrupted" and events[-1].get("event") in ("started", "checkpoint")
    if submission is None and at_work and host not in ("", socket.gethostname()):
        found = _elsewhere(path, found)
    return found, submission


def _submission(events: list[dict[str, Any]]) -> Submission | None:
    """The last submission, unless the run was taken back or planned anew since."""
    started = False
    for event in reversed(events):
        kind = event.get("event")
        if kind == "submitted" and "array" in event:
            return Submission(str(event["array"]), int(event["index"]), float(event["time"]), started)
        if kind in ("planned", "blocked", "cancelled"):
            return None
        started = started or kind == "started"
    return None


def _with_scheduler(
    runs_root: Path, states: Mapping[str, RunState], submissions: Mapping[str, Submission], must_answer: bool
) -> dict[str, RunState]:
    """The states of submitted runs as record and scheduler together have them."""
    try:
        answer = scheduler.ask({(item.array, item.index): item.time for item in submissions.values()})
    except SilentSchedulerError as silent:
        if must_answer:
            raise
        unseen = [run_id for run_id in submissions if states[run_id].state != "running"]
        return {run_id: replace(states[run_id], state="unknown", reason=str(silent)) for run_id in unseen}
    judged: dict[str, RunState] = {}
    for run_id, submission in submissions.items():
        info = answer.get((submission.array, submission.index))
        judged[run_id] = judge(runs_root / run_id, states[run_id], submission, info)
    return judged


def judge(path: Path, state: RunState, submission: Submission, info: JobInfo | None) -> RunState:
    """What a submitted run's state is, given what the scheduler says of its job (None: it lists no such job)."""
    if state.state == "running":  # its lock is held, which is seen from here; whoever waits for it or cancels it needs its job
        return replace(state, job=info.job_id, reason=_place(info)) if info and info.state in scheduler.AT_WORK else state
    if info is None:
        return _unlisted(path, state, submission)
    known = replace(state, job=info.job_id, cause=info.state)
    if info.state in scheduler.WAITING:
        return replace(known, state="submitted", reason=f"waits: {info.reason}" if info.reason else "")
    if info.state in scheduler.AT_WORK:
        return replace(known, state="running", reason=_place(info))
    if info.state in _CUT_OFF:
        return replace(known, state="interrupted", reason=_CUT_OFF[info.state])
    if info.state == "CANCELLED" and info.reason == _DROPPED:
        return _never_began(path, known, "planned", "what its job waited for was gone")
    if info.state == "CANCELLED" and submission.started:
        return replace(known, state="cancelled", reason="cancelled in the scheduler")
    if info.state == "CANCELLED":
        return _never_began(path, known, "cancelled", "cancelled in the scheduler")
    if info.state == "COMPLETED":
        return replace(known, state="interrupted", reason=last_line(path) or "its job ended without a result")
    return _broken_off(path, known, submission)


def _place(info: JobInfo) -> str:
    return f"on {info.nodes}" if info.nodes else ""


def _broken_off(path: Path, state: RunState, submission: Submission) -> RunState:
    """A job that ended with an error that the run itself did not record: killed, out of memory, or crashed."""
    log = path.parent / arrays.FOLDER / submission.array / f"{state.job}_0_log.out"
    said = log.read_bytes()[-4096:].decode(errors="replace").lower() if log.exists() else ""
    if any(words in said for words in _MEMORY_WORDS):
        return replace(state, state="interrupted", cause="OUT_OF_MEMORY", reason=_CUT_OFF["OUT_OF_MEMORY"])
    last = (RunRecord(path).events() or [{}])[-1]
    if last.get("event") == "preempted":
        return replace(state, state="interrupted", reason="asked to stop")
    if last.get("event") == "ended":
        return replace(state, state="interrupted", reason=str(last.get("reason", "")))
    reason = last_line(path) or _full_disk(path) or f"its job ended as {state.cause}; see {log}"
    return replace(state, state="failed", reason=reason)


def _full_disk(path: Path) -> str:
    """What a run can no longer say for itself: that there is no room for a word."""
    free = shutil.disk_usage(path).free
    return f"the disk of {path.parent} is full; make room there and run `hicmae retry`" if free < FULL_BYTES else ""


def _unlisted(path: Path, state: RunState, submission: Submission) -> RunState:
    age_s = time.time() - submission.time
    if age_s < SETTLING_S:
        return replace(state, state="unknown", reason=f"submitted {age_s:.0f} s ago and not listed by the scheduler yet")
    if submission.started:
        return replace(state, state="interrupted", reason="the scheduler no longer knows its job")
    if (path.parent / arrays.FOLDER / submission.array / "job.json").exists():
        return _never_began(path, state, "planned", "the scheduler no longer knows its job, which never began")
    return replace(state, state="planned", reason="its job was never accepted by the scheduler")


def _never_began(path: Path, state: RunState, otherwise: str, reason: str) -> RunState:
    """Blocked when something that the run needs is not done (SLURM drops such jobs), else as given."""
    initial = getattr(RunRecord(path).config(), "initial", None)
    needed = initial.reference if initial is not None and initial.source == "run" else ""
    if needed and not (path.parent / needed / "result.json").exists():
        return replace(state, state="blocked", reason=f"needs {needed}, which is not done")
    return replace(state, state=otherwise, reason=reason)


def _reason(events: list[dict[str, Any]], state: str) -> str:
    """Why a run is not going on, in the words of the event that says so."""
    last = next((event for event in reversed(events) if event.get("reason")), None)
    if state in ("failed", "blocked", "cancelled"):
        return str(last["reason"]) if last else ""
    if state == "interrupted":
        preempted = events and events[-1].get("event") == "preempted"
        return "asked to stop" if preempted else "its process ended without a word"
    return ""


def _elsewhere(path: Path, state: RunState) -> RunState:
    """A run last started on another machine, whose lock may not be seen from here: judged by when it last wrote."""
    written = max((file.stat().st_mtime for file in path.glob("*.jsonl")), default=0.0)
    quiet_s = time.time() - written
    if quiet_s < QUIET_S:
        return replace(state, state="running", reason=f"on {state.host}")
    remedy = f"if it is dead, `hicmae cancel {path.name[:8]}` lets the next launch go on with it"
    return replace(state, state="unknown", reason=f"{state.host} has written nothing for {quiet_s / 60:.0f} min; {remedy}")
