"""`hicmae launch`: the options of a launch, as a command; what it does is in experiments/launch.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments import experiment, launch, render
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
        list[str] | None, typer.Argument(help="More filters for --only.", metavar="[KEY=VALUE]...", show_default=False)
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
    max_parallel: Annotated[
        int | None, typer.Option(help="At most so many runs at once.", show_default="what cores, memory and GPUs allow")
    ] = None,
    gpus_per_run: Annotated[int, typer.Option(help="GPUs for each run, where there are any.")] = 1,
    runs: Annotated[
        Path | None, typer.Option(help="Folder of the run directories.", show_default="$HICMAE_RUNS or ./runs")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan (or the list) as JSON and stop.")] = False,
) -> None:
    """Plan a study, ask, and execute what is missing. Run twice, the second does nothing."""
    console = Console()
    if list_studies:
        return _list(console, as_json)
    if not name:
        raise UsageError(f"launch needs an experiment: {', '.join(experiment.names())}, or a Python file with study()")
    if cluster not in CLUSTERS:
        raise_unknown("cluster", cluster, CLUSTERS)
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
        command=("python", "experiments/launch.py", *sys.argv[1:])
        if sys.argv[0].endswith("launch.py")
        else ("hicmae", *sys.argv[1:]),
    )
    if dry_run or as_json:
        return _show(console, request, as_json)
    raise typer.Exit(launch.launch(request, console))


def _show(console: Console, request: launch.Request, as_json: bool) -> None:
    plan, _ = launch.plan_for(request, launch.requested(request))
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
