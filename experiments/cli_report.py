"""`hicmae report`, `sync` and `ui`: tables and figures of recorded runs, and MLflow."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from hicmae.errors import HicmaeError, UsageError
from hicmae.record import runs_root

PANEL = "Results"
BUILD = Path("reports/build")
SHOWN_PROBLEMS = 20
RUNS = Annotated[Path | None, typer.Option(help="Folder of the run directories.", show_default="$HICMAE_RUNS or ./runs")]
URI = Annotated[str | None, typer.Option(help="MLflow's store or server.", show_default="$MLFLOW_TRACKING_URI or a file in runs")]


def register(app: typer.Typer) -> None:
    """Add the commands about results."""
    for command in (report, sync, ui):
        app.command(command.__name__, rich_help_panel=PANEL)(command)


def report(
    name: Annotated[str | None, typer.Argument(help="A study; all of them when left out.", show_default=False)] = None,
    check: Annotated[bool, typer.Option("--check", help="Only check: fail if a file is stale or a cell incomplete.")] = False,
    if_changed: Annotated[
        bool, typer.Option("--if-changed", help="Only when the records changed since the last report.")
    ] = False,
    columns: Annotated[
        str | None, typer.Option(help="Extra columns of the tables, separated by commas.", show_default="what there is")
    ] = None,
    pdf: Annotated[bool, typer.Option(help="Make report.pdf where LaTeX is installed.")] = True,
    out: Annotated[Path, typer.Option(help="Where the report is written.")] = BUILD,
    runs: RUNS = None,
) -> None:
    """Write tables, figures and the report of recorded studies."""
    from reports.freshness import is_current

    extras = None if columns is None else [column.strip() for column in columns.split(",") if column.strip()]
    if check:
        from reports.build import check_report

        wrong = check_report(runs or runs_root(), out, name, extras)
        _print_problems(wrong)
        if wrong:
            raise HicmaeError(f"{out}: {len(wrong)} things are not as they should be")
        typer.echo(f"{out}: up to date, every cell complete")
        return
    if if_changed and is_current(runs or runs_root(), out, name, extras, pdf):
        typer.echo(f"report: {out / 'report.html'} is up to date")
        return
    from reports.build import build_report

    made = build_report(runs or runs_root(), out, name, extras, pdf)
    _print_problems(made.problems)
    for note in made.notes:
        typer.echo(note)
    for path in filter(None, (made.html, made.pdf)):
        typer.echo(f"report: {path}")
    if not made.pages:
        raise HicmaeError("no study could be read")


def sync(
    name: Annotated[list[str] | None, typer.Argument(help="Studies; all of them when left out.", show_default=False)] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C, as a service.")] = False,
    if_changed: Annotated[bool, typer.Option("--if-changed", help="Do not even ask MLflow when nothing changed.")] = False,
    every_s: Annotated[float, typer.Option(help="Seconds between two looks with --follow.", min=0.1)] = 10.0,
    uri: URI = None,
    runs: RUNS = None,
) -> None:
    """Carry recorded runs into MLflow: only what is new, each thing once."""
    if follow:
        _follow(name, uri, runs or runs_root(), every_s)
        return
    from hicmae.tracking import is_up_to_date

    if if_changed and is_up_to_date(runs or runs_root(), uri):
        typer.echo("mlflow: up to date")
        return
    typer.echo(_synchronised(name, uri, runs or runs_root()))


def _follow(name: list[str] | None, uri: str | None, root: Path, every_s: float) -> None:
    said = ""
    while True:
        try:
            line = _synchronised(name, uri, root, quiet=True)
        except UsageError:
            raise
        except HicmaeError as error:  # the server is away: only a delay
            line = str(error)
        if line and line != said:
            typer.echo(line)
        said = line
        time.sleep(every_s)


def _synchronised(name: list[str] | None, uri: str | None, root: Path, quiet: bool = False) -> str:
    from hicmae.tracking import default_uri, sync
    from reports.summaries import summaries

    found = sync(root, uri, studies=name or None, summarise=summaries, say=typer.echo)
    if quiet and not found.sent_runs:
        return ""
    counts = f"{found.sent_runs} runs sent, {found.unchanged_runs} unchanged, {found.points} points"
    return f"mlflow: {found.studies} studies, {counts}; {uri or default_uri(root)}"


def ui(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 5000,
    uri: URI = None,
    runs: RUNS = None,
) -> None:
    """Serve the MLflow UI on 127.0.0.1 until Ctrl-C; first carries over what is new."""
    from hicmae.tracking import FOLDER, default_uri, study_pages
    from hicmae.tracking.sync import UI_ADDRESS

    root = runs or runs_root()
    address = uri or default_uri(root)
    if address.startswith("http"):
        typer.echo(f"MLflow UI: {address}")
        return
    _check_free(port)
    typer.echo(_synchronised(None, uri, root))
    artifacts = (root.resolve() / FOLDER / "artifacts").as_uri()
    for study, page in study_pages(root, address).items():
        typer.echo(f"  {study}: {page.replace(UI_ADDRESS, f'http://127.0.0.1:{port}')}")
    typer.echo(f"MLflow UI: http://127.0.0.1:{port} (Ctrl-C stops it)")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", address, "--default-artifact-root", artifacts]
    # Background jobs of the server (scoring of language models) are not for us.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    done = subprocess.run([*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"], env=environment, check=False)
    if done.returncode not in (0, -2, 130):
        raise HicmaeError(f"mlflow server ended with code {done.returncode}")


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UsageError(f"port {port} is taken; choose another with --port") from None


def _print_problems(problems: tuple[str, ...] | list[str]) -> None:
    for problem in problems[:SHOWN_PROBLEMS]:
        typer.echo(f"! {problem}", err=True)
    if len(problems) > SHOWN_PROBLEMS:
        typer.echo(f"! and {len(problems) - SHOWN_PROBLEMS} more; provenance.json has all", err=True)
