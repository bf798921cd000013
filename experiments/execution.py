"""Execute planned runs on this machine and say how it ended; shared by `hicmae launch` and `hicmae retry`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments import cost
from experiments.experiment import Run
from slurm.local import Entry, Job, LocalExecutor, Options
from slurm.view import counts, view_for

STOPPED = 130
FOLDERS = ("HICMAE_DATA", "HICMAE_STORE", "HICMAE_CHECKPOINTS")  # may be named relative to the launcher's folder
NO_STORE = ("HICMAE_STORE", "off")  # a word where a folder may stand
ON_ERROR = "HICMAE_ON_ERROR"  # fail or skip, of clips that cannot be used; `--on-error` of a launch


def job_of(runs_root: Path, run: Run, expected_s: float | None = None) -> Job:
    """What the executor needs to know of a run."""
    path = (runs_root / run.run_id).absolute()
    return Job(run.run_id, path, run.label, run.stage, run.depends_on, cost.memory(run.config), expected_s)


def execute_here(
    jobs: Sequence[Job], console: Console, code: Path, max_parallel: int | None = None, gpus_per_run: int = 1
) -> int:
    """Execute jobs from the code in a folder; returns the exit code: 0 when all is done, 1 when runs failed, 130 when stopped."""
    options = Options(max_parallel=max_parallel, gpus_per_run=gpus_per_run, environment=environment_of_runs(), code=code)
    with view_for(console) as view:
        executor = LocalExecutor(jobs, view, options)
        board = executor.execute()
    return conclude(console, board, stopped=executor.stopping > 0)


def environment_of_runs() -> dict[str, str]:
    """Variables of this launch that its runs need wherever they start; folders become absolute, for runs start in another."""
    given = [(name, os.environ[name]) for name in FOLDERS if os.environ.get(name)]
    folders = {name: value if (name, value) == NO_STORE else str(Path(value).absolute()) for name, value in given}
    return folders | ({ON_ERROR: os.environ[ON_ERROR]} if os.environ.get(ON_ERROR) else {})


def conclude(console: Console, board: Sequence[Entry], stopped: bool) -> int:
    """Say how it ended: every failed run with its reason and log, or that all is done."""
    console.print(counts(board), highlight=False)
    for entry in board:
        if entry.state == "failed":
            console.print(
                f"failed: {entry.job.label}: {entry.reason}\n  log: {entry.log}", style="red", markup=False, soft_wrap=True
            )
    blocked = sum(entry.state == "blocked" for entry in board)
    if blocked:
        console.print(f"blocked: {blocked} runs need one that is not done", style="red", highlight=False)
    if stopped:
        console.print("stopped; launch again to go on where it ended", highlight=False)
        return STOPPED
    return 0 if all(entry.state == "done" for entry in board) else 1
