"""Launching on a SLURM cluster: submit what is missing, and, when asked to wait, submit again what was cut off.

    python experiments/launch.py NAME --cluster slurm --profile a100
    python experiments/launch.py NAME --cluster slurm --wait

Without `--wait` the launcher is gone after seconds; launching again later does the same as waiting would have done.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from experiments import execution, notify
from experiments.experiment import Run
from experiments.render import STATE_ORDER
from hicmae.errors import HicmaeError
from hicmae.record import RunRecord
from slurm import profiles
from slurm.machine import check_cap
from slurm.scheduler import SilentSchedulerError
from slurm.state import RunState, read_states

if TYPE_CHECKING:
    from slurm.dispatch import Target

LOOK_EVERY_S = 5.0
MAX_SUBMISSIONS = 5  # of one run while waiting: cut off again and again, it needs a person
AGAIN = ("interrupted", "planned", "new")


def target(profile: str, max_parallel: int | None, label: str) -> Target:
    """Where to submit; the code is set once it is known.

    Raises UsageError for an unknown profile, a cap below 1 and where there is no SLURM.
    """
    from slurm import dispatch

    check_cap(max_parallel)
    found = profiles.find(profile)
    dispatch.check_here()
    return dispatch.Target(found, Path(), label, execution.environment_of_runs(), max_parallel, profile)


@dataclass(frozen=True)
class Watch:
    """What happens after a submission: whether to stay until all is done, and whom to tell how it ended."""

    study: str
    runs: Sequence[Run]  # all that the launch is about, those at work already included
    wait: bool = False
    notify: str = ""


def launch(runs_root: Path, to_do: Sequence[Run], target: Target, watch: Watch, console: Console) -> int:
    """Submit runs; returns 0 when submitted or, when it waits, when all is done, else 1. Raises HicmaeError."""
    for run in to_do:
        RunRecord.create(runs_root, run.config)
    if not watch.wait:
        job_ids = submit(runs_root, to_do, target, console)
        if watch.notify and job_ids:
            _notify_after(runs_root, job_ids, target, watch, console)
        console.print("see `hicmae status` for how far they are", highlight=False)
        return 0
    try:
        _submit_patiently(runs_root, to_do, target, console)
        states = _wait(runs_root, watch.runs, target, console)
    except KeyboardInterrupt:
        console.print("no longer waiting; the jobs go on in SLURM (`hicmae cancel` stops them)", highlight=False)
        return execution.STOPPED
    exit_code = conclude(runs_root, watch.runs, states, console)
    if watch.notify:
        notify.tell(watch.notify, watch.study, runs_root, list(states))
    return exit_code


def _notify_after(runs_root: Path, job_ids: Sequence[str], target: Target, watch: Watch, console: Console) -> None:
    """Leave word in the queue: a job that tells how the others ended, after all of them, those of earlier launches too."""
    from slurm import dispatch

    queued = [state.job for state in read_states(runs_root, [run.run_id for run in watch.runs]).values() if _is_queued(state)]
    job_ids = [*job_ids, *(job.partition("_")[0] for job in queued)]
    words = [watch.notify, watch.study, *(run.run_id for run in watch.runs)]
    label = f"notify-{target.label}"
    try:
        array = dispatch.submit_after(runs_root, label, "experiments.notify", words, job_ids, target)
    except HicmaeError as error:
        console.print(f"nobody will be notified: {error}", style="yellow", markup=False, soft_wrap=True)
    else:
        console.print(f"submitted the notification as job {array.job_id}, after all others", highlight=False)


def submit(runs_root: Path, runs: Sequence[Run], target: Target, console: Console) -> list[str]:
    """Submit runs and say which jobs they became; returns the ids of the arrays."""
    from slurm import dispatch

    report = dispatch.submit(runs_root, [execution.job_of(runs_root, run) for run in runs], target)
    for array in report.arrays:
        console.print(f"submitted {len(array.run_ids):5d} runs as job {array.job_id}  {array.name}", highlight=False)
    for run_id, reason in report.left_out.items():
        console.print(f"left out: {run_id}: {reason}", style="yellow", highlight=False, soft_wrap=True)
    return [array.job_id for array in report.arrays if array.job_id]


def _wait(runs_root: Path, runs: Sequence[Run], target: Target, console: Console) -> Mapping[str, RunState]:
    """Look every few seconds until nothing is active and nothing can be submitted again."""
    submissions: Counter[str] = Counter()
    shown = ""
    while True:
        states = read_states(runs_root, [run.run_id for run in runs])
        told = _told(states)
        if told != shown:
            console.print(told, highlight=False)
            shown = told
        again = _again(runs, states, submissions)
        if again:
            submissions.update(run.run_id for run in again)
            _submit_patiently(runs_root, again, target, console)
        elif not any(state.is_active for state in states.values()):
            return states
        time.sleep(LOOK_EVERY_S)


def _submit_patiently(runs_root: Path, runs: Sequence[Run], target: Target, console: Console) -> None:
    """Submit, but take a scheduler that does not answer for one that will."""
    try:
        submit(runs_root, runs, target, console)
    except SilentSchedulerError as silent:
        console.print(str(silent), style="yellow", markup=False, soft_wrap=True)


def _again(runs: Sequence[Run], states: Mapping[str, RunState], submissions: Counter[str]) -> list[Run]:
    """Runs that were cut off, and those that were blocked by one of them; runs come after what they need."""
    chosen: dict[str, Run] = {}
    for run in runs:
        state = states[run.run_id].state
        hopeful = all(states[name].state == "done" or _is_queued(states[name]) or name in chosen for name in run.depends_on)
        if (state in AGAIN or (state == "blocked" and hopeful)) and submissions[run.run_id] < MAX_SUBMISSIONS and hopeful:
            chosen[run.run_id] = run
    return list(chosen.values())


def _is_queued(state: RunState) -> bool:
    """Whether SLURM can wait for a run."""
    return state.is_active and bool(state.job)


def conclude(runs_root: Path, runs: Sequence[Run], states: Mapping[str, RunState], console: Console) -> int:
    """Name what failed, with its reason and log; 0 when everything is done."""
    for run in runs:
        state = states[run.run_id]
        if state.state in ("failed", "interrupted"):
            text = f"{state.state}: {run.label}: {state.reason}\n  log: {runs_root / run.run_id / 'log'}"
            console.print(text, style="red", markup=False, soft_wrap=True)
    return 0 if all(state.state == "done" for state in states.values()) else 1


def _told(states: Mapping[str, RunState]) -> str:
    found = Counter(state.state for state in states.values())
    return ", ".join(f"{found[state]} {state}" for state in STATE_ORDER if found[state])
