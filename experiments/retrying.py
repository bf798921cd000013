"""`hicmae retry`: another attempt at what failed and at what was blocked by it, where the last one was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from experiments import cluster, execution, notify, records, study_file
from experiments.experiment import Run
from hicmae.record import RunRecord
from slurm import arrays, code
from slurm.state import read_states

LOCAL = ""  # in place of a profile: on this machine
Groups = Mapping[tuple[str, str], Sequence[Run]]  # by study and profile


def retry(
    runs_root: Path, target: str, reason: str, console: Console, max_parallel: int | None, wait: bool, receiver: str
) -> int:
    """Attempt the broken runs of a study, or the run of an id, again; each one's record says so, with the reason.

    Returns the exit code: 0 all done (or submitted, or nothing to do), 1 runs failed, 130 stopped. Raises UsageError for a target
    or a profile that nothing answers to, HicmaeError when the code cannot be kept or SLURM refuses.
    """
    with arrays.launching(runs_root):  # so that nobody plans a run again which another has submitted by then
        groups = _broken(runs_root, target)
        if not groups:
            console.print("nothing to retry: no run failed or was blocked", highlight=False)
            return 0
        kept = code.take(runs_root).path
        targets = {key: replace(cluster.target(key[1], max_parallel, key[0]), code=kept) for key in groups if key[1] != LOCAL}
        for run in [run for runs in groups.values() for run in runs]:
            RunRecord(runs_root / run.run_id).append_event("planned", reason=f"retry: {reason}")
    exit_codes = []
    for (study, profile), runs in groups.items():
        if profile == LOCAL:
            exit_codes.append(_execute_here(runs_root, study, runs, kept, console, max_parallel, receiver))
        else:
            watch = cluster.Watch(study, runs, wait, receiver)
            exit_codes.append(cluster.launch(runs_root, runs, targets[study, profile], watch, console))
    return max(exit_codes)


def _execute_here(
    runs_root: Path, study: str, runs: Sequence[Run], kept: Path, console: Console, max_parallel: int | None, receiver: str
) -> int:
    jobs = [execution.job_of(runs_root, run) for run in runs]
    exit_code = execution.execute_here(jobs, console, kept, max_parallel)
    if receiver:
        notify.tell(receiver, study, runs_root, [run.run_id for run in runs])
    return exit_code


def _broken(runs_root: Path, target: str) -> Groups:
    """The failed and blocked runs among those that are meant; a run of several studies counts once."""
    wanted = {record.id for record in records.find_many(runs_root, target)}
    states = read_states(runs_root, sorted(wanted))
    groups: dict[tuple[str, str], list[Run]] = {}
    for name in study_file.studies(runs_root):
        rows = [row for row in study_file.read(runs_root, name)["runs"] if row["run_id"] in wanted]
        for row in rows:
            if states[row["run_id"]].state in ("failed", "blocked"):
                run = records.recorded_run(runs_root, name, row)
                groups.setdefault((name, _profile(runs_root, run)), []).append(run)
        wanted -= {row["run_id"] for row in rows}
    return groups


def _profile(runs_root: Path, run: Run) -> str:
    """The profile of the last submission; LOCAL for a run that was last planned for the machine of its launcher."""
    for event in reversed(RunRecord(runs_root / run.run_id).events()):
        if event.get("event") == "submitted":
            return str(event.get("resources", {}).get("profile", LOCAL))
        if event.get("event") == "planned":
            return LOCAL
    return LOCAL
