"""`hicmae search`: run a search, see how far it is, print what it chose, draw its figures, finish a pruned trial.

hicmae search run search_finetune --smoke --yes
hicmae search best search_finetune --smoke
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from experiments.cli_report import after_launch
from experiments.cli_runs import RUNS
from experiments.search import definition, launch
from experiments.search import space as spaces
from experiments.search.definition import Search, trial_name
from experiments.search.worker import Request, folder_of, requested
from hicmae.errors import UsageError
from hicmae.record import runs_root

if TYPE_CHECKING:
    from experiments.search.study import Row, Study

NAME = Annotated[str, typer.Argument(help="A search's name (see `hicmae search list`) or a Python file with search().")]
SMOKE = Annotated[bool, typer.Option("--smoke", help="The same search at a size for one CPU core, on the generated corpus.")]
FOLD = Annotated[list[int] | None, typer.Option(help="Only this outer fold; repeatable.", show_default="all of the search's")]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add `hicmae search`."""
    search = typer.Typer(no_args_is_help=True, help="Hyper-parameter search whose trials are ordinary runs.")
    for command in (run, status, best, figures, promote):
        search.command(command.__name__)(command)
    search.command("list")(list_searches)
    app.add_typer(search, name="search", rich_help_panel="Studies")


def run(
    name: NAME,
    smoke: SMOKE = False,
    fold: FOLD = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Workers at once, on slurm over all outer folds.",
            show_default="what the machine allows; on slurm max_parallel, or 4",
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Another budget: so many trials in all.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="Another budget: so many GPU-hours in all.")] = None,
    cluster: Annotated[str, typer.Option(help="Where workers run: local or slurm.")] = "local",
    profile: Annotated[
        str, typer.Option(help="With slurm: the cluster's section in slurm.toml or slurm/profiles.toml.")
    ] = "default",
    wait: Annotated[
        bool, typer.Option("--wait", help="With slurm: stay, and tell how trials end, until the budget is spent.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Begin without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the space, print the plan and stop.")] = False,
    runs: RUNS = None,
) -> None:
    """Search until the budget is spent. Stopped at any moment, the next call goes on."""
    request = Request(name, runs or runs_root(), smoke, tuple(fold or ()), trials, gpu_hours)
    how = launch.How(workers, cluster, profile, wait, yes, dry_run, ("hicmae", *sys.argv[1:]))
    studies = launch.studies(request)  # before: who edits their file meanwhile means the next launch
    exit_code = launch.launch(request, how, Console())
    if not dry_run and (cluster == "local" or wait):
        after_launch(request.runs_root, studies, exit_code)
    raise typer.Exit(exit_code)


def status(name: NAME, smoke: SMOKE = False, fold: FOLD = None, as_json: JSON = False, runs: RUNS = None) -> None:
    """Show the trials: state, value and parameters, the best first."""
    from experiments.search import report

    for search, study in _begun(name, smoke, fold, runs):
        rows = study.rows()
        if as_json:
            typer.echo(json.dumps({"search": search.name, **report.summary(search, rows)}, indent=1))
        else:
            Console().print(_table(search, rows))


def best(
    name: NAME,
    smoke: SMOKE = False,
    fold: FOLD = None,
    form: Annotated[str, typer.Option("--format", help="python, toml or json.")] = "python",
    runs: RUNS = None,
) -> None:
    """Print the best configuration as a preset to paste."""
    from experiments.search import report

    report.check_format(form)
    for search, study in _begun(name, smoke, fold, runs):
        typer.echo(report.preset(search, study.best(), form))


def figures(name: NAME, smoke: SMOKE = False, fold: FOLD = None, runs: RUNS = None) -> None:
    """Draw the history, the parameters' importance, slices and parallel coordinates, as PNG and PDF."""
    for search, study in _begun(name, smoke, fold, runs):
        study.best()
        for path in study.draw(folder_of(runs or runs_root(), search) / "figures"):
            typer.echo(str(path))


def promote(
    name: NAME,
    trial: Annotated[int, typer.Argument(help="The number of a pruned trial.")],
    smoke: SMOKE = False,
    fold: FOLD = None,
    runs: RUNS = None,
) -> None:
    """Ask for a pruned trial to be run to its end from its checkpoint, beyond the budget; `hicmae search run` does it."""
    parts = requested(Request(name, runs or runs_root(), smoke, tuple(fold or ()))).parts()
    if len(parts) > 1:
        raise UsageError(f"{name} has {len(parts)} outer folds, each with a search of its own: name one with --fold")
    launch.look(parts[0], runs or runs_root()).promote(trial)
    typer.echo(f"{trial_name(trial)} will be run to its end by the next `hicmae search run {name}`")


def list_searches(as_json: JSON = False) -> None:
    """List the searches that the project knows."""
    found = [definition.find(name) for name in definition.names()]
    if as_json:
        typer.echo(json.dumps([{"name": s.name, "title": s.title, "budget": str(s.budget)} for s in found], indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("search", "what it looks for", "corpus", "parameters", "budget"):
        table.add_column(column, no_wrap=column == "search")
    for search in found:
        table.add_row(search.name, search.title, search.corpus, str(len(search.space)), f"{search.budget} a fold")
    Console().print(table)


def _begun(name: str, smoke: bool, folds: list[int] | None, runs: Path | None) -> list[tuple[Search, Study]]:
    """The searches of the wanted outer folds that were begun. Raises UsageError when none was."""
    root = runs or runs_root()
    parts = requested(Request(name, root, smoke, tuple(folds or ()))).parts()
    begun = [part for part in parts if folder_of(root, part).is_dir()] or parts[:1]
    return [(part, launch.look(part, root)) for part in begun]


def _table(search: Search, rows: list[Row]) -> Table:
    from experiments.search.study import ranked

    best = ranked(search, rows)
    objective = "value" if search.function else f"validation {search.metric}"
    table = Table(title=f"{search.name}: {_counts(rows)}", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("trial", "state", objective, *spaces.short_names(search.space).values(), "note"):
        table.add_column(column)
    for row in [*best, *(row for row in rows if row not in best)]:
        values = [_short(row.params[field]) if field in row.params else "" for field in search.space]
        value = "" if row.value is None else f"{row.value:.6g}"
        table.add_row(trial_name(row.number), row.state, value, *values, str(row.notes.get("reason", "")))
    return table


def _counts(rows: list[Row]) -> str:
    states = [row.state for row in rows]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no trial yet"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
