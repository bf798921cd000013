"""Questions and orders to SLURM by its own commands; a scheduler that does not answer is never taken for an answer.

Jobs are known by name: every array has a name that no other has, recorded before it is submitted.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hicmae.errors import HicmaeError

TIMEOUT_S = 60
_FORMAT = "--format=JobID,JobName%64,State,Reason,NodeList"
_DEFAULT_MAX_ARRAY = 1001  # SLURM's own default
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
AT_WORK = ("RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SUSPENDED", "SIGNALING", "STAGE_OUT", "STOPPED")
IN_QUEUE = (*WAITING, *AT_WORK)


@dataclass(frozen=True)
class JobInfo:
    """What the scheduler says of one task of an array."""

    job_id: str  # ARRAYID_TASK
    state: str  # PENDING, RUNNING, COMPLETED, TIMEOUT, ...
    reason: str = ""
    nodes: str = ""


class SilentSchedulerError(HicmaeError):
    """The scheduler did not answer; nothing is known, nothing may be concluded."""


Task = tuple[str, int]  # name of the array, index


def ask(wanted: Mapping[Task, float]) -> dict[Task, JobInfo]:
    """What SLURM says of tasks; `wanted` maps each to when it was submitted.

    One call for tasks in the queue, and a second one, to the accounting, only when some are no longer there. (The accounting
    alone would not do: it does not list jobs that wait for others.) Raises SilentSchedulerError when SLURM does not answer.
    """
    if not wanted:
        return {}
    names = ",".join(dict.fromkeys(name for name, _ in wanted))
    found = dict(_parsed(_call(["squeue", "--noheader", "--states=all", f"--name={names}", "--format=%F_%K|%j|%T|%r|%N"])))
    missing = [task for task in wanted if task not in found]
    return found | _ended(missing, min(wanted.values())) if missing else found


def _ended(tasks: Sequence[Task], since: float) -> dict[Task, JobInfo]:
    """How tasks ended that the queue no longer lists; a cluster without accounting knows none.

    The accounting may hold a job for waiting or running for ever: one that a crashed controller forgot. The queue knows better.
    """
    names = ",".join(dict.fromkeys(name for name, _ in tasks))
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - 60))
    try:
        text = _call(["sacct", "--allocations", "--noheader", "--parsable2", f"--name={names}", f"--starttime={start}", _FORMAT])
    except SilentSchedulerError as silent:
        if "disabled" in str(silent) or "No such file" in str(silent):
            return {}
        raise
    return {task: info for task, info in _parsed(text) if info.state not in IN_QUEUE}


def find_job(name: str) -> str | None:
    """The id of the queued array of a name; None when there is none. Raises SilentSchedulerError."""
    text = _call(["squeue", "--noheader", "--states=all", f"--name={name}", "--format=%F"])
    ids = sorted(set(text.split()), key=int)
    return ids[0] if ids else None


def max_array_size() -> int:
    """How many tasks an array may have here: MaxArraySize limits the index, which begins at 0."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", _call(["scontrol", "show", "config"]))
    return int(match.group(1)) if match else _DEFAULT_MAX_ARRAY


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel tasks, given as ARRAYID_TASK, or whole arrays by their id. Raises SilentSchedulerError."""
    if job_ids:
        _call(["scancel", *job_ids])


def requeue(job_id: str) -> None:
    """Put one task back into the queue under its own id; never the base id of an array, which would requeue all of it."""
    _call(["scontrol", "requeue", job_id])


def _call(command: Sequence[str]) -> str:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SilentSchedulerError(f"{command[0]}: {error}; is this a machine of the cluster?") from None
    if ended.returncode:
        line = (ended.stderr.strip() or ended.stdout.strip() or f"exit code {ended.returncode}").splitlines()[-1]
        raise SilentSchedulerError(f"{command[0]}: {line}; the scheduler does not answer, try again later")
    return ended.stdout


def _parsed(text: str) -> Iterator[tuple[tuple[str, int], JobInfo]]:
    for line in text.splitlines():
        job, name, state, reason, nodes = (part.strip() for part in (*line.split("|"), "", "", "", "")[:5])
        base, _, indices = job.partition("_")
        for index in _indices(indices):
            yield (name, index), JobInfo(f"{base}_{index}", state.split(" ")[0], _said(reason), _said(nodes))


def _said(text: str) -> str:
    return "" if text in ("None", "None assigned", "(null)") else text


def _indices(text: str) -> Iterable[int]:
    """`7`, or what stands for tasks that still wait: `[3-7,9%2]`."""
    for part in text.strip("[]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            yield from range(int(first), int(last or first) + 1)
