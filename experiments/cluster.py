"""Launching on a SLURM cluster: submit what is missing, and, when asked to wait, submit again what was cut off.

    python experiments/launch.py NAME --cluster slurm --profile a100
    python experiments/launch.py NAME --cluster slurm --wait

Without `--wait` the launcher is gone after seconds; launching again later does the same as waiting would have done.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from experiments import execution
from experiments.experiment import Run
from experiments.plan import Plan
from experiments.render import STATE_ORDER
from hicmae.record import RunRecord
from slurm import profiles
from slurm.state import RunState, read_states

if TYPE_CHECKING:
    from slurm.dispatch import Target

LOOK_EVERY_S = 5.0
MAX_SUBMISSIONS = 5  # of one run while waiting: cut off again and again, it needs a person
AGAIN = ("interrupted", "planned", "new")


def target(profile: str, max_parallel: int | None, label: str) -> Target:
    """Where to submit; the code is set once it is known. Raises UsageError for an unknown profile and where there is no SLURM."""
    from slurm import dispatch

    found = profiles.find(profile)
    dispatch.check_here()
    return dispatch.Target(found, Path(), label, execution.absolute_folders(), max_parallel)


def launch(runs_root: Path, plan: Plan, target: Target, console: Console, wait: bool) -> int:
    """Submit the plan's runs; returns 0 when submitted or, with `wait`, when all is done, else 1."""
    for run in plan.to_do:
        RunRecord.create(runs_root, run.config)
    submit(runs_root, plan.to_do, target, console)
    if not wait:
        console.print("see `hicmae status` for how far they are", highlight=False)
        return 0
    try:
        states = _wait(runs_root, plan.selected, target, console)
    except KeyboardInterrupt:
        console.print("no longer waiting; the jobs go on in SLURM (`hicmae cancel` stops them)", highlight=False)
        return execution.STOPPED
    return conclude(runs_root, plan.selected, states, console)


def submit(runs_root: Path, runs: Sequence[Run], target: Target, console: Console) -> None:
    """Submit runs and say which jobs they became."""
    from slurm import dispatch

    report = dispatch.submit(runs_root, [execution.job_of(runs_root, run) for run in runs], target)
    for array in report.arrays:
        console.print(f"submitted {len(array.run_ids):5d} runs as job {array.job_id}  {array.name}", highlight=False)
    for run_id, reason in report.left_out.items():
        console.print(f"left out: {run_id}: {reason}", style="yellow", highlight=False, soft_wrap=True)


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
            submit(runs_root, again, target, console)
        elif not any(state.is_active for state in states.values()):
            return states
        time.sleep(LOOK_EVERY_S)


def _again(runs: Sequence[Run], states: Mapping[str, RunState], submissions: Counter[str]) -> list[Run]:
    """Runs that were cut off, and those that were blocked by one of them; runs come after what they need."""
    chosen: dict[str, Run] = {}
    for run in runs:
        state = states[run.run_id].state
        hopeful = all(states[name].state == "done" or states[name].is_active or name in chosen for name in run.depends_on)
        if (state in AGAIN or (state == "blocked" and hopeful)) and submissions[run.run_id] < MAX_SUBMISSIONS and hopeful:
            chosen[run.run_id] = run
    return list(chosen.values())


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
