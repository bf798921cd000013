"""Launch a search: check it, show the plan, ask, keep workers at it until the budget is spent.

python experiments/launch.py search_finetune [--smoke]        # the same as `hicmae search run search_finetune`
python experiments/launch.py search_finetune --use-best       # what was chosen, on the outer folds
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from experiments import available
from experiments.cost import UNIT, Costs
from experiments.experiment import Experiment
from experiments.search import space as spaces
from experiments.search.definition import Search
from experiments.search.worker import STORAGE, Request, folder_of, opened, requested
from hicmae.errors import UsageError, raise_unknown
from slurm import code

if TYPE_CHECKING:
    from experiments.search.study import Row, Study
    from slurm.dispatch import Target

CLUSTERS = ("local", "slurm")
STOPPED = 130


@dataclass(frozen=True)
class How:
    """How to launch: workers at once, where, and without asking or without doing."""

    workers: int | None = None
    cluster: str = "local"
    profile: str = "default"
    wait: bool = False  # on a cluster: until the budget is spent
    yes: bool = False
    dry_run: bool = False
    command: tuple[str, ...] = ()


def launch(request: Request, how: How, console: Console) -> int:
    """Search every wanted outer fold; returns the exit code: 0 when all budgets are spent (or submitted), 130 when stopped."""
    from experiments.search import report

    if how.cluster not in CLUSTERS:
        raise_unknown("cluster", how.cluster, CLUSTERS)
    search = requested(request)
    parts = search.parts()
    parts[0].check_space()
    if not how.dry_run:
        available.ensure_generated(corpora_of(search), console)
    prints = available.Fingerprints()
    _show(console, search, parts, request.runs_root, prints)
    if how.dry_run:
        return 0
    for name in corpora_of(search):
        prints(name)
    prints.require(corpora_of(search))
    target = _target(how, search)
    _confirm(search, how.yes)
    kept = code.take(request.runs_root)
    for part in parts:
        study = opened(part, request.runs_root, prints)
        study.keep_budget()
        report.record(part, study, request.runs_root, prints, how.command, kept.to_json())
        if study.is_spent():
            console.print(f"{part.name}: nothing left to do, {len(study.rows())} trials have ended", highlight=False)
            if not (study.folder / "figures").exists():  # they ended where nobody waited for them
                _conclude(request, study, console)
            continue
        if target is None:
            exit_code = _here(request, study, how, kept.path, prints, console)
        else:
            exit_code = _on_slurm(request, study, how, replace(target, code=kept.path), console)
        if exit_code:
            return exit_code
        report.record(part, study, request.runs_root, prints)
        _conclude(request, study, console)
    return 0


def look(search: Search, runs_root: Path) -> Study:
    """One outer fold's study for reading. Raises UsageError when it was never begun."""
    from experiments.search.study import Study

    return Study.look(search, folder_of(runs_root, search), os.environ.get(STORAGE))


def best_of(request: Request) -> Experiment:
    """The study that runs what the searches have chosen on the outer folds. Raises UsageError for a fold not searched yet."""
    from experiments.search import report

    search = requested(request)
    if search.function is not None:
        raise UsageError(f"{search.name}: searches over a function; --use-best is for searches whose trials are runs")
    best: dict[int, Row] = {}
    for part in search.parts():
        study = look(part, request.runs_root)
        if not study.is_spent():
            raise UsageError(f"{part.name}: its budget is not spent yet; run `hicmae search run {request.name}` to its end first")
        best[part.fold or 0] = study.best()
    return report.best_experiment(search, best)


def studies(request: Request) -> list[str]:
    """The names of the studies, one for each wanted outer fold."""
    return [part.name for part in requested(request).parts()]


def counts(request: Request) -> dict[str, int]:
    """How many trials have ended in which way, over all wanted outer folds."""
    begun = [part for part in requested(request).parts() if folder_of(request.runs_root, part).is_dir()]
    return dict(Counter(row.state for part in begun for row in look(part, request.runs_root).rows()))


def corpora_of(search: Search) -> tuple[str, ...]:
    """The corpora that the trials read."""
    if search.function is not None:
        return ()
    return tuple(dict.fromkeys([*([search.pretrain_corpus] if search.pretrain_corpus else []), search.corpus]))


def _target(how: How, search: Search) -> Target | None:
    """Where to submit workers; None on this machine. Raises UsageError for an unknown profile and where there is no SLURM."""
    if how.cluster == "local":
        return None
    from experiments import cluster as clusters
    from experiments.search import cluster

    target = clusters.target(how.profile, how.workers, search.name)
    cluster.check(target)
    return target


def _here(request: Request, study: Study, how: How, kept: Path, prints: available.Fingerprints, console: Console) -> int:
    from experiments.search import pool

    share = pool.division(study.search, prints, how.workers)
    return pool.Pool(study, request.arguments(study.search.fold), share, kept, console).run()


def _on_slurm(request: Request, study: Study, how: How, target: Target, console: Console) -> int:
    from experiments.search import cluster

    words = request.arguments(study.search.fold)
    workers = cluster.Workers(study, request.runs_root, words, how.workers, target, console)
    if not workers.submit():
        console.print(f"{study.search.name}: {workers.queued()} workers are in the queue already", highlight=False)
    if not how.wait:
        console.print(f"see `hicmae search status {request.name}` for how far they are", highlight=False)
        return 0
    try:
        workers.wait()
    except KeyboardInterrupt:
        console.print("no longer waiting; the workers go on in SLURM", highlight=False)
        return STOPPED
    return 0


def _conclude(request: Request, study: Study, console: Console) -> None:
    """When the budget is spent, draw what was found and name the best."""
    from experiments.search import pool

    search = study.search
    if not study.is_spent() or not any(row.state == "done" for row in study.rows()):
        return
    study.draw(study.folder / "figures")
    best = study.best()
    console.print(
        f"{search.name}: best is {pool.line_of(search, best, [best]).partition(';')[0]}", highlight=False, soft_wrap=True
    )
    console.print(f"as a preset: hicmae search best {request.name}{' --smoke' if request.smoke else ''}", highlight=False)


def _show(console: Console, search: Search, parts: list[Search], runs_root: Path, prints: available.Fingerprints) -> None:
    """The plan: what is searched, on what, for how long."""
    objective = "value of a function" if search.function else f"validation {search.metric} on {search.corpus}"
    console.print(f"[bold]{escape(search.name)}[/bold]  {escape(search.title)}", highlight=False)
    goal = "largest" if search.maximizes else "smallest"
    console.print(
        f"{goal} {objective}; {search.budget} for each of {len(parts)} outer folds"
        if search.fold is None and not search.function
        else f"{goal} {objective}; {search.budget}",
        highlight=False,
    )
    console.print(f"sampler {search.sampler}, pruner {search.pruner}, up to {search.splits} inner splits", highlight=False)
    for name, dimension in search.space.items():
        console.print(f"  {escape(name)}: {escape(spaces.describe(dimension))}", highlight=False)
    if search.function is None:
        costs = Costs(runs_root, [])
        runs = parts[0].trial_runs(0, {}, 1, prints)
        hours = sum(costs.of(run).hours for run in runs)
        console.print(
            f"a trial without earlier results: {len(runs)} runs, about {hours:.3g} {UNIT[costs.device]} (from FLOPs)",
            highlight=False,
        )


def _confirm(search: Search, yes: bool) -> None:
    """Ask on a terminal. Raises UsageError where nobody can answer, typer.Abort on a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody can answer here (not a terminal): add --yes to search, or --dry-run to look at the plan only")
    import typer

    typer.confirm(f"Search with a budget of {search.budget} a fold?", default=True, abort=True)
