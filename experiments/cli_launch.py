"""`hicmae launch`: the options of a launch, as a command; what it does is in experiments/launcher.py."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments import execution, experiment, launcher, render
from experiments import notify as notifying
from experiments.cli_report import after_launch
from experiments.cli_runs import NOTIFY, RUNS
from experiments.search import definition
from experiments.search.worker import Request as SearchRequest
from hicmae.errors import UsageError, raise_unknown
from hicmae.record import runs_root
from slurm.machine import check_cap

CLUSTERS = ("local", "slurm")
ON_ERROR = ("fail", "skip")

# The options of a launch.
Name = Annotated[str, typer.Argument(help="A study's name (see --list) or a Python file with study().", show_default=False)]
Filters = Annotated[list[str] | None, typer.Argument(help="More filters for --only.", metavar="KEY=VALUE", show_default=False)]
Smoke = Annotated[bool, typer.Option("--smoke", help="The same study at a size for one CPU core, on the generated corpus.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Launch without asking.")]
ListStudies = Annotated[bool, typer.Option("--list", help="List the studies and stop.")]
_ONLY = "Launch a part: variant=..., corpus=..., fold=..., seed=..., stage=...; patterns allowed."
Only = Annotated[list[str] | None, typer.Option(help=_ONLY, metavar="KEY=VALUE")]
Corpus = Annotated[list[str] | None, typer.Option(help="Fine-tune on this corpus instead of the study's; repeatable.")]
Seed = Annotated[list[int] | None, typer.Option(help="Use this seed instead of the study's; repeatable.")]
_SIZE = "Base size of the model: tiny, small, base or smoke."
Size = Annotated[str | None, typer.Option(help=_SIZE, show_default="the study's")]
Cluster = Annotated[str, typer.Option(help="Where runs are executed: local or slurm.")]
Profile = Annotated[str, typer.Option(help="With slurm: the cluster's section in slurm.toml or slurm/profiles.toml.")]
Wait = Annotated[bool, typer.Option("--wait", help="With slurm: stay, and submit again what was cut off.")]
_MAX_PARALLEL = "what cores, memory and GPUs allow"
MaxParallel = Annotated[int | None, typer.Option(help="At most so many runs at once.", show_default=_MAX_PARALLEL)]
GpusPerRun = Annotated[int, typer.Option(help="GPUs for each run, where there are any.")]
_DETERMINISTIC = "Deterministic algorithms and fixed reductions: repeats are bit-identical. Other runs than without."
Deterministic = Annotated[bool, typer.Option("--deterministic", help=_DETERMINISTIC)]
_ON_ERROR = "Clips that cannot be used: fail, or skip (left out, named in the run's record, counted under its tables)."
OnError = Annotated[str, typer.Option("--on-error", envvar=execution.ON_ERROR, help=_ON_ERROR)]
UseBest = Annotated[bool, typer.Option("--use-best", help="Of a search: run what it chose, on the outer folds.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the plan (or the list) as JSON and stop.")]


def register(app: typer.Typer) -> None:
    """Add `hicmae launch`."""
    app.command("launch", rich_help_panel="Studies")(launch_command)


def launch_command(
    name: Name = "",
    filters: Filters = None,
    smoke: Smoke = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    list_studies: ListStudies = False,
    only: Only = None,
    corpus: Corpus = None,
    seed: Seed = None,
    size: Size = None,
    cluster: Cluster = "local",
    profile: Profile = "default",
    wait: Wait = False,
    max_parallel: MaxParallel = None,
    gpus_per_run: GpusPerRun = 1,
    use_best: UseBest = False,
    deterministic: Deterministic = False,
    on_error: OnError = "fail",
    notify: NOTIFY = "",
    runs: RUNS = None,
    as_json: AsJson = False,
) -> None:
    """Plan a study, ask, and execute what is missing. Run twice, the second does nothing."""
    console = Console()
    if list_studies:
        return _list(console, as_json)
    _check(name, cluster, max_parallel)
    _pass_on(on_error)
    request = launcher.Request(
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
        deterministic=deterministic,
        command=_command(),
    )
    if definition.is_search(name) and not use_best:
        _check_search(request, dry_run, as_json)
        raise typer.Exit(_search(request, console, cluster, dry_run))
    study = launcher.requested(request, _best(request) if use_best else None)
    if dry_run or as_json:
        return _show(console, request, study, as_json)
    exit_code = launcher.launch(request, study, console)
    if cluster == "local" or wait:
        after_launch(request.runs_root, [study.name], exit_code)
    raise typer.Exit(exit_code)


def _check(name: str, cluster: str, max_parallel: int | None) -> None:
    """Refuse a name that nothing answers to, and a cap that lets nothing run; files are looked at later."""
    known = (*experiment.names(), *definition.names())
    if not name:
        raise UsageError(f"launch needs an experiment: {', '.join(known)}, or a Python file with study()")
    if name not in known and not experiment.is_file(name):
        raise_unknown("experiment", name, known)
    if cluster not in CLUSTERS:
        raise_unknown("cluster", cluster, CLUSTERS)
    check_cap(max_parallel)


def _pass_on(on_error: str) -> None:
    """Leave the policy where runs look for it: those of this machine, of SLURM and of a search's workers inherit it."""
    if on_error not in ON_ERROR:
        raise_unknown("--on-error", on_error, ON_ERROR)
    if on_error != os.environ.get(execution.ON_ERROR, ON_ERROR[0]):
        os.environ[execution.ON_ERROR] = on_error


def _command() -> tuple[str, ...]:
    """The command line as a person would type it again, without the receiver of --notify, which may be a secret."""
    as_script = Path(sys.argv[0]).name == "launch.py"
    words = [word for word in sys.argv[1:] if not word.startswith("--notify=")]
    if "--notify" in words:
        at = words.index("--notify")
        del words[at : at + 2]
    return ("python", "experiments/launch.py", *words) if as_script else ("hicmae", *words)


def _check_search(request: launcher.Request, dry_run: bool, as_json: bool) -> None:
    """Refuse the options of a launch that a search has no use for."""
    status = f"hicmae search status {request.name} --json"
    useless = {
        "--deterministic": (request.deterministic, "the trials of a search are compared, not repeated bit by bit"),
        "--corpus": (request.corpora, "a search declares its corpus, in its file"),
        "--seed": (request.seeds, "a trial's seeds number its inner splits; add --use-best to run what was chosen with it"),
        "--size": (request.size, "a search declares its size, in its file; --smoke is the small one"),
        "--gpus-per-run": (request.gpus_per_run != 1, "a search's worker takes the GPUs that it sees"),
        "--json": (as_json, f"see --dry-run for the plan and `{status}` for the trials"),
    }
    for option, (given, why) in useless.items():
        if given:
            raise UsageError(f"{option} is for studies: {why}")
    if request.notify and request.cluster == "slurm" and not (request.wait or dry_run):
        raise UsageError("--notify (or HICMAE_NOTIFY) needs --wait here: nobody is there to tell when a search on slurm ends")


def _search(request: launcher.Request, console: Console, cluster: str, dry_run: bool) -> int:
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
    wanted = replace(_search_request(request), folds=_folds(request.only))
    studies = search_launch.studies(wanted)  # before: who edits their file meanwhile means the next launch
    exit_code = search_launch.launch(wanted, how, console)
    if not dry_run and (cluster == "local" or request.wait):
        after_launch(request.runs_root, studies, exit_code)
        if request.notify:
            notifying.notify(request.notify, request.name, exit_code, search_launch.counts(request.runs_root, studies), "trials")
    return exit_code


def _folds(filters: Sequence[str]) -> tuple[int, ...]:
    """The outer folds that --only names. Raises UsageError for other filters."""
    found: list[int] = []
    for text in filters:
        key, _, values = text.partition("=")
        numbers = values.split(",")
        if key != "fold" or not all(number.isascii() and number.isdigit() for number in numbers):
            raise UsageError(f"{text!r}: of a search, --only takes outer folds: fold=1 or fold=1,2")
        found += map(int, numbers)
    return tuple(dict.fromkeys(found))


def _best(request: launcher.Request) -> experiment.Experiment:
    from experiments.search import launch as search_launch

    if not definition.is_search(request.name):
        raise UsageError(f"--use-best is for searches ({', '.join(definition.names())}); {request.name} is none")
    for option, given in (("--corpus", request.corpora), ("--size", request.size)):
        if given:
            raise UsageError(f"{option} does not go with --use-best: what was chosen was chosen for the search's own")
    return search_launch.best_of(_search_request(request))


def _search_request(request: launcher.Request) -> SearchRequest:
    return SearchRequest(request.name, request.runs_root, request.smoke)


def _show(console: Console, request: launcher.Request, study: experiment.Experiment, as_json: bool) -> None:
    plan, _ = launcher.plan_for(request, study)
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
