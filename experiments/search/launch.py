"""Launch a search: check it, show the plan, ask, keep workers at it until the budget is spent.

python experiments/launch.py search_finetune [--smoke]        # the same as `hicmae search run search_finetune`
python experiments/launch.py search_finetune --use-best       # what was chosen, on the outer folds
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from experiments import available, study_file
from experiments.cost import UNIT, Costs
from experiments.experiment import Experiment, is_file
from experiments.search import space as spaces
from experiments.search.definition import Search
from experiments.search.worker import STORAGE, Request, folder_of, opened, requested
from hicmae.errors import UsageError, raise_unknown
from hicmae.whole import written_whole
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
    kept, keeping = code.take(request.runs_root), _kept(request)
    left = [study for study in _begun(keeping, prints, how, kept) if not _is_over(request, study, console)]
    if not left:
        return 0
    if target is None:
        return _here(request, keeping, left, how, kept.path, prints, console)
    return _on_slurm(request, keeping, left, how, replace(target, code=kept.path), console)


def _kept(request: Request) -> Request:
    """The request with a user's own file replaced by a copy beside the code's, so that edits do not reach workers that wait."""
    if not is_file(request.name):
        return request
    content = Path(request.name).read_bytes()
    folder = request.runs_root.absolute() / code.FOLDER / f"search-{hashlib.sha256(content).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / Path(request.name).name
    if not place.exists():
        with written_whole(place) as temporary:
            temporary.write_bytes(content)
    return replace(request, name=str(place))


def _begun(request: Request, prints: available.Fingerprints, how: How, kept: code.Snapshot) -> list[Study]:
    """The studies of the wanted outer folds, each with its study file."""
    from experiments.search import report

    studies = [opened(part, request.runs_root, prints) for part in requested(request).parts()]
    for study in studies:
        study.keep_budget()
        report.record(study.search, study, request.runs_root, prints, how.command, kept.to_json())
    return studies


def _is_over(request: Request, study: Study, console: Console) -> bool:
    if not study.is_spent():
        return False
    console.print(f"{study.search.name}: nothing left to do, {len(study.rows())} trials have ended", highlight=False)
    if not (study.folder / "figures").exists():  # they ended where nobody waited for them
        _conclude(request, study, console)
    return True


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


def counts(runs_root: Path, studies: Sequence[str]) -> dict[str, int]:
    """How many trials have ended in which way, over all these studies."""
    found: Counter[str] = Counter()
    for name in studies:
        listed = study_file.read_or_none(runs_root, name) or {}
        summary = runs_root / study_file.FOLDER / name / "summary.json"  # of a search over a function
        search = listed.get("search") or (json.loads(summary.read_text()) if summary.exists() else {})
        found.update(str(trial["state"]) for trial in search.get("trials", ()))
    return dict(found)


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


def _here(
    request: Request,
    keeping: Request,
    studies: Sequence[Study],
    how: How,
    kept: Path,
    prints: available.Fingerprints,
    console: Console,
) -> int:
    """One outer fold after the other, each with all that the machine allows."""
    from experiments.search import pool

    for study in studies:
        share = pool.division(study.search, prints, how.workers)
        words = _of_folds(keeping, [study]).arguments()
        if exit_code := pool.Pool(study, words, share, kept, console).run():
            return exit_code
        _conclude(request, study, console)
    return 0


def _on_slurm(request: Request, keeping: Request, studies: Sequence[Study], how: How, target: Target, console: Console) -> int:
    from experiments.search import cluster

    workers = cluster.Workers(studies, request.runs_root, _of_folds(keeping, studies), how.workers, target, console)
    if not workers.submit():
        console.print(f"{workers.count} workers are in the queue already", highlight=False)
    if not how.wait:
        console.print("they go on by themselves until the budget is spent; see `hicmae search status`", highlight=False)
        return 0
    try:
        workers.wait()
    except KeyboardInterrupt:
        console.print("no longer waiting; the workers go on in SLURM", highlight=False)
        return STOPPED
    for study in studies:
        _conclude(request, study, console)
    return 0


def _of_folds(request: Request, studies: Sequence[Study]) -> Request:
    return replace(request, folds=tuple(study.search.fold for study in studies if study.search.fold is not None))


def _conclude(request: Request, study: Study, console: Console) -> None:
    """When the budget is spent, draw what was found and name the best."""
    from experiments.search import pool

    search = study.search
    if not study.is_spent() or not any(row.state == "done" for row in study.rows()):
        return
    study.draw_found()
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
        if len(parts) > 1
        else f"{goal} {objective}; {search.budget}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"sampler {search.sampler}, pruner {search.pruner}, up to {search.splits} inner splits", highlight=False)
    for name, dimension in search.space.items():
        console.print(f"  {escape(name)}: {escape(spaces.describe(dimension))}", highlight=False)
    if search.function is None:
        costs = Costs(runs_root)
        runs = parts[0].trial_runs(0, {}, 1, prints)
        hours = sum(costs.of(run).hours for run in runs)
        basis = "recorded runs" if all(costs.of(run).measured for run in runs) else "FLOPs"
        console.print(
            f"a trial without earlier results: {len(runs)} runs, about {hours:.3g} {UNIT[costs.device]} (from {basis})",
            highlight=False,
            soft_wrap=True,
        )


def _confirm(search: Search, yes: bool) -> None:
    """Ask on a terminal. Raises UsageError where nobody can answer, typer.Abort on a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody can answer here (not a terminal): add --yes to search, or --dry-run to look at the plan only")
    import typer

    typer.confirm(f"Search with a budget of {search.budget} a fold?", default=True, abort=True)
