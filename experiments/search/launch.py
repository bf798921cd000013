"""Launch a search: check it, show the plan, ask, keep workers at it until the budget is spent.

python experiments/launch.py search_finetune [--smoke]        # the same as `hicmae search run search_finetune`
python experiments/launch.py search_finetune --use-best       # what was chosen, on the outer folds
"""

from __future__ import annotations

import os
import sys
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

if TYPE_CHECKING:
    from experiments.search.study import Row, Study

CLUSTERS = ("local", "slurm")


def launch(
    request: Request,
    console: Console,
    *,
    workers: int | None = None,
    cluster: str = "local",
    yes: bool = False,
    dry_run: bool = False,
    command: tuple[str, ...] = (),
) -> int:
    """Search every wanted outer fold; returns the exit code: 0 when all budgets are spent, 130 when stopped."""
    if cluster not in CLUSTERS:
        raise_unknown("cluster", cluster, CLUSTERS)
    search = requested(request)
    parts = search.parts()
    parts[0].check_space()
    if not dry_run:
        available.ensure_generated(corpora_of(search), console)
    prints = available.Fingerprints()
    _show(console, search, parts, request.runs_root, prints)
    if dry_run:
        return 0
    _fingerprints(search, prints)
    prints.require(corpora_of(search))
    _confirm(search, yes)
    for part in parts:
        code = _search(request, part, console, workers, cluster, command, prints)
        if code:
            return code
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


def corpora_of(search: Search) -> tuple[str, ...]:
    """The corpora that the trials read."""
    if search.function is not None:
        return ()
    return tuple(dict.fromkeys([*([search.pretrain_corpus] if search.pretrain_corpus else []), search.corpus]))


def _fingerprints(search: Search, prints: available.Fingerprints) -> None:
    for name in corpora_of(search):
        prints(name)


def _search(
    request: Request,
    part: Search,
    console: Console,
    workers: int | None,
    cluster: str,
    command: tuple[str, ...],
    prints: available.Fingerprints,
) -> int:
    """Search one outer fold to the end of its budget, then write down and draw what was found."""
    from experiments.search import pool, report

    study = opened(part, request.runs_root, prints)
    report.record(part, study, request.runs_root, prints, command)
    if study.is_spent():
        console.print(f"{part.name}: nothing left to do, {len(study.rows())} trials have ended", highlight=False)
        return 0
    keeper = pool.Pool(study, request.arguments(part.fold), pool.division(part, prints, workers), console)
    try:
        code = keeper.run()
    finally:
        report.record(part, study, request.runs_root, prints, command)
    if code == 0 and any(row.state == "done" for row in study.rows()):
        study.draw(folder_of(request.runs_root, part) / "figures")
        best = study.best()
        console.print(
            f"{part.name}: best is {pool.line_of(part, best, [best]).partition(';')[0]}", highlight=False, soft_wrap=True
        )
        console.print(f"as a preset: hicmae search best {request.name}{' --smoke' if request.smoke else ''}", highlight=False)
    return code


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
