"""Launch a study: plan, ask, execute what is missing.

    python experiments/launch.py NAME [--smoke] [--dry-run] [--yes]

Launching is reconciling: run twice, the second does nothing; stopped, the next goes on where it ended.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import available, cluster, execution, experiment, notify, render, selection, study_file
from experiments.experiment import Experiment, Run
from experiments.plan import Plan, make_plan
from hicmae import presets
from hicmae.config import FinetuneConfig
from hicmae.data import corpora
from hicmae.errors import UsageError
from hicmae.record import RunRecord
from slurm import arrays, code, profiles
from slurm.local import Job
from slurm.state import read_states


@dataclass(frozen=True)
class Request:
    """What a launch was asked for. Empty tuples and None leave the study as declared."""

    name: str
    runs_root: Path
    smoke: bool = False
    size: str | None = None
    corpora: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    only: tuple[str, ...] = ()
    yes: bool = False
    max_parallel: int | None = None
    gpus_per_run: int = 1
    cluster: str = "local"
    profile: str = "default"
    wait: bool = False
    notify: str = ""
    deterministic: bool = False
    command: tuple[str, ...] = ()


def plan_for(request: Request, study: Experiment) -> tuple[Plan, available.Fingerprints]:
    """The plan of a request, and the corpora's content hashes that it rests on."""
    recorded = study_file.read_or_none(request.runs_root, study.name)
    prints = available.Fingerprints((recorded or {}).get("fingerprints"))
    runs = study.runs(prints)
    _check_starts(runs, request.runs_root)
    chosen = selection.select(runs, request.only)
    return make_plan(study, runs, chosen, request.runs_root, recorded, prints.missing), prints


def _check_starts(runs: Sequence[Run], runs_root: Path) -> None:
    """Raise ConfigError for a head that does not fit its corpus, and for a modality which the weights to start from lack."""
    heads = {(run.config.data.corpus, run.config.head): run.config for run in runs if isinstance(run.config, FinetuneConfig)}
    for config in heads.values():
        corpora.check_head(config)
    planned = {run.run_id for run in runs}  # pre-trainings of the study itself have both streams
    others = [run.config for run in runs if isinstance(run.config, FinetuneConfig) and run.config.initial.source != "scratch"]
    checked = {(c.initial, c.head.modality): c for c in others if c.initial.reference not in planned}
    if checked:
        from hicmae.train.initial import check_modality  # imports torch, which most plans do without

        for config in checked.values():
            check_modality(config, runs_root)


def requested(request: Request, found: Experiment | None = None) -> Experiment:
    """The study (`found`, or that of the name) with the size, corpora, seeds and determinism asked for. Raises UsageError."""
    study = _requested(request, found)
    return replace(study, deterministic=True) if request.deterministic else study


def _requested(request: Request, found: Experiment | None) -> Experiment:
    if found is not None:  # made for this request: its size and corpora are what a search was about
        return replace(found, seeds=request.seeds) if request.seeds else found
    study = experiment.find(request.name)
    if request.smoke and request.size not in (None, "smoke"):
        raise UsageError(f"--smoke and --size {request.size} exclude each other")
    if request.smoke or request.size == "smoke":
        study = study.at_smoke_size()
    elif request.size is not None:
        study = replace(study, size=presets.check_size(request.size))
    if request.corpora:
        study = replace(study, corpora=request.corpora)
    return replace(study, seeds=request.seeds) if request.seeds else study


def launch(request: Request, study: Experiment, console: Console) -> int:
    """Plan, ask, execute or submit; returns the exit code: 0 all done (or submitted), 1 runs failed, 130 stopped."""
    if request.cluster == "slurm":
        profiles.find(request.profile)  # a name that is none is told before anything is made
    make_corpus(request, study, console)
    plan, prints = plan_for(request, study)
    if not plan.to_do and not (plan.active and request.wait):
        remember(request, plan, prints)
        console.print(_nothing_left(plan), highlight=False)
        return 0
    render.show_plan(console, plan, graph=False)
    prints.require(run.corpus for run in plan.to_do)
    on_slurm = request.cluster == "slurm"
    target = cluster.target(request.profile, request.max_parallel, study.name) if on_slurm else None
    confirm(request, f"Launch {len(plan.to_do)} runs?")
    kept = code.take(request.runs_root)
    record_study(request, plan, prints, kept.to_json())
    if target is not None:
        watch = cluster.Watch(study.name, plan.selected, request.wait, request.notify)
        return cluster.launch(request.runs_root, plan.to_do, replace(target, code=kept.path), watch, console)
    exit_code = execute(request, plan, kept.path, console)
    if request.notify:
        ended = Counter(state.state for state in read_states(request.runs_root, plan.states).values())
        notify.notify(request.notify, study.name, exit_code, dict(ended))
    return exit_code


def make_corpus(request: Request, study: Experiment, console: Console) -> None:
    """Make the generated corpus where the study reads it and it is absent: a run's id holds the content of its data."""
    folder = available.to_be_made(study.used_corpora())
    if folder is not None:
        confirm(request, f"The plan rests on the files of the generated corpus. Make them in {folder} (a minute, 13 MB)?")
        available.make_generated(folder, console)


def execute(request: Request, plan: Plan, folder: Path, console: Console) -> int:
    """Run what is to do on this machine, and wait for what another launcher on it is running."""
    with arrays.launching(request.runs_root):
        states = read_states(request.runs_root, [run.run_id for run in plan.to_do])  # another launcher may have been faster
        taken = [run for run in plan.to_do if not states[run.run_id].is_active and states[run.run_id].state != "done"]
        record_intent(request, taken)
    locked = [run for run in plan.selected if RunRecord(request.runs_root / run.run_id).is_locked()]
    wanted = {run.run_id for run in (*taken, *locked)}
    jobs = [_job(request.runs_root, run, plan) for run in plan.selected if run.run_id in wanted]
    return execution.execute_here(jobs, console, folder, request.max_parallel, request.gpus_per_run)


def record_study(request: Request, plan: Plan, prints: available.Fingerprints, snapshot: Mapping[str, Any]) -> None:
    """Write what the study wants, for reports and MLflow, before anything runs."""
    study_file.write(request.runs_root, plan.experiment, plan.runs, prints.known, request.command, snapshot)


def remember(request: Request, plan: Plan, prints: available.Fingerprints) -> None:
    """Record a study whose runs were all done by other studies, or in another order, without touching a record that says so."""
    recorded = study_file.read_or_none(request.runs_root, plan.experiment.name) or {}
    described = json.loads(json.dumps(plan.experiment.describe()))
    if recorded.get("runs") != [study_file.row(run) for run in plan.runs] or any(
        recorded.get(k) != v for k, v in described.items()
    ):
        record_study(request, plan, prints, recorded.get("snapshot", {}))


def record_intent(request: Request, runs: Sequence[Run]) -> None:
    """Make every run's directory and say in it that the run is planned, and by whom."""
    for run in runs:
        record = RunRecord.create(request.runs_root, run.config)
        record.append_event("planned", experiment=run.experiment, variants=list(run.variants), command=list(request.command))


def confirm(request: Request, question: str) -> None:
    """Ask on a terminal. Raises UsageError where nobody can answer, typer.Abort on a no."""
    if request.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody can answer here (not a terminal): add --yes to launch, or --dry-run to look at the plan only")
    import typer

    typer.confirm(question, default=True, abort=True)


def _job(runs_root: Path, run: Run, plan: Plan) -> Job:
    expected = plan.costs.of(run)
    return execution.job_of(runs_root, run, expected.wall_s if expected.measured else None)


def _nothing_left(plan: Plan) -> str:
    done = sum(plan.state(run) == "done" for run in plan.selected)
    if plan.active:
        return f"Nothing to start: {done} runs are done, {len(plan.active)} are being worked on (see `hicmae status`)."
    return f"Nothing left to do: all {done} runs of {plan.experiment.name} are done."
