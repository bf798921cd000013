"""`hicmae launch`: the options of a launch, as a command; what it does is in experiments/launch.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments import experiment, launch, render
from experiments.search import definition
from experiments.search.worker import Request as SearchRequest
from hicmae.errors import UsageError, raise_unknown
from hicmae.record import runs_root

CLUSTERS = ("local", "slurm")


def register(app: typer.Typer) -> None:
    """Add `hicmae launch`."""
    app.command("launch", rich_help_panel="Studies")(launch_command)


def launch_command(
    name: Annotated[
        str, typer.Argument(help="A study's name (see --list) or a Python file with study().", show_default=False)
    ] = "",
    filters: Annotated[
        list[str] | None, typer.Argument(help="More filters for --only.", metavar="KEY=VALUE", show_default=False)
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="The same study at a size for one CPU core, on the generated corpus.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Launch without asking.")] = False,
    list_studies: Annotated[bool, typer.Option("--list", help="List the studies and stop.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Launch a part: variant=..., corpus=..., fold=..., seed=..., stage=...; patterns allowed.", metavar="KEY=VALUE"
        ),
    ] = None,
    corpus: Annotated[list[str] | None, typer.Option(help="Fine-tune on this corpus instead of the study's; repeatable.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Use this seed instead of the study's; repeatable.")] = None,
    size: Annotated[
        str | None, typer.Option(help="Base size of the model: tiny, small, base or smoke.", show_default="the study's")
    ] = None,
    cluster: Annotated[str, typer.Option(help="Where runs are executed: local or slurm.")] = "local",
    profile: Annotated[
        str, typer.Option(help="With slurm: the cluster's section in slurm.toml or slurm/profiles.toml.")
    ] = "default",
    wait: Annotated[bool, typer.Option("--wait", help="With slurm: stay, and submit again what was cut off.")] = False,
    max_parallel: Annotated[
        int | None, typer.Option(help="At most so many runs at once.", show_default="what cores, memory and GPUs allow")
    ] = None,
    gpus_per_run: Annotated[int, typer.Option(help="GPUs for each run, where there are any.")] = 1,
    use_best: Annotated[bool, typer.Option("--use-best", help="Of a search: run what it chose, on the outer folds.")] = False,
    notify: Annotated[
        str, typer.Option(envvar="HICMAE_NOTIFY", help="Tell a command or a web hook how it ended.", show_default=False)
    ] = "",
    runs: Annotated[
        Path | None, typer.Option(help="Folder of the run directories.", show_default="$HICMAE_RUNS or ./runs")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan (or the list) as JSON and stop.")] = False,
) -> None:
    """Plan a study, ask, and execute what is missing. Run twice, the second does nothing."""
    console = Console()
    if list_studies:
        return _list(console, as_json)
    _check(name, cluster)
    request = launch.Request(
        name=name,
        runs_root=runs or runs_root(),
        smoke=smoke,
        size=size,
        corpora=tuple(corpus or ()),
        seeds=tuple(seed or ()),
        only=(*(only or ()), *(filters or ())),
        yes=yes,
        max_parallel=max_parallel,
        gpus_per_run=gpus_per_run,
        cluster=cluster,
        profile=profile,
        wait=wait,
        notify=notify,
        command=_command(),
    )
    if definition.is_search(name) and not use_best:
        raise typer.Exit(_search(request, console, cluster, dry_run))
    study = launch.requested(request, _best(request) if use_best else None)
    if dry_run or as_json:
        return _show(console, request, study, as_json)
    raise typer.Exit(launch.launch(request, study, console))


def _check(name: str, cluster: str) -> None:
    """Refuse a name that nothing answers to; files are looked at later."""
    known = (*experiment.names(), *definition.names())
    if not name:
        raise UsageError(f"launch needs an experiment: {', '.join(known)}, or a Python file with study()")
    if name not in known and not experiment.is_file(name):
        raise_unknown("experiment", name, known)
    if cluster not in CLUSTERS:
        raise_unknown("cluster", cluster, CLUSTERS)


def _command() -> tuple[str, ...]:
    """The command line as a person would type it again."""
    as_script = Path(sys.argv[0]).name == "launch.py"
    return ("python", "experiments/launch.py", *sys.argv[1:]) if as_script else ("hicmae", *sys.argv[1:])


def _search(request: launch.Request, console: Console, cluster: str, dry_run: bool) -> int:
    from experiments.search import launch as search_launch

    how = search_launch.How(
        workers=request.max_parallel,
        cluster=cluster,
        profile=request.profile,
        wait=request.wait,
        yes=request.yes,
        dry_run=dry_run,
        command=request.command,
    )
    return search_launch.launch(_search_request(request), how, console)


def _best(request: launch.Request) -> experiment.Experiment:
    from experiments.search import launch as search_launch

    if not definition.is_search(request.name):
        raise UsageError(f"--use-best is for searches ({', '.join(definition.names())}); {request.name} is none")
    return search_launch.best_of(_search_request(request))


def _search_request(request: launch.Request) -> SearchRequest:
    return SearchRequest(request.name, request.runs_root, request.smoke)


def _show(console: Console, request: launch.Request, study: experiment.Experiment, as_json: bool) -> None:
    plan, _ = launch.plan_for(request, study)
    if as_json:
        typer.echo(json.dumps(plan.to_json(), indent=1))
    else:
        render.show_plan(console, plan, graph=True)


def _list(console: Console, as_json: bool) -> None:
    studies = [experiment.find(name) for name in experiment.names()]
    if as_json:
        typer.echo(json.dumps([study.describe() for study in studies], indent=1))
    else:
        render.show_studies(console, studies)
        console.print(f"searches: {', '.join(definition.names())}", highlight=False)
