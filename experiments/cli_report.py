"""`hicmae report`, `sync` and `ui`: tables and figures of recorded runs, and MLflow."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from experiments.cli_runs import RUNS
from hicmae.errors import HicmaeError, UsageError
from hicmae.record import runs_root

PANEL = "Results"
BUILD = Path("reports/build")
SHOWN_PROBLEMS = 20
PATIENCE_S = 60.0
POSTGRES = ("postgresql://", "postgresql+psycopg://")
URI = Annotated[str | None, typer.Option(help="MLflow's store or server.", show_default="$MLFLOW_TRACKING_URI or a file in runs")]


def register(app: typer.Typer) -> None:
    """Add the commands about results."""
    for command in (report, sync, ui, mlflow_server):
        app.command(command.__name__.replace("_", "-"), rich_help_panel=PANEL)(command)


def report(
    name: Annotated[str | None, typer.Argument(help="A study; all of them when left out.", show_default=False)] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only check: fail if a file is stale or edited, or a cell incomplete.")
    ] = False,
    if_changed: Annotated[
        bool, typer.Option("--if-changed", help="Only when the records changed since the last report.")
    ] = False,
    columns: Annotated[
        str | None, typer.Option(help="Extra columns of the tables, separated by commas.", show_default="what there is")
    ] = None,
    pdf: Annotated[bool, typer.Option(help="Make report.pdf where LaTeX is installed.")] = True,
    out: Annotated[Path, typer.Option(help="Where the report is written.")] = BUILD,
    archive: Annotated[
        Path | None,
        typer.Option("--from", help="Build it from an archive of `hicmae export`.", metavar="ARCHIVE", show_default=False),
    ] = None,
    runs: RUNS = None,
) -> None:
    """Write tables, figures and the report of recorded studies."""
    if archive is not None:
        _report_from(archive, name, columns, pdf, out, refused=check or if_changed or runs is not None)
        return
    from reports.freshness import is_current

    extras = None if columns is None else [column.strip() for column in columns.split(",") if column.strip()]
    if check:
        from reports.check import check_report

        wrong = check_report(runs or runs_root(), out, name, extras)
        _print_problems(wrong)
        if wrong:
            raise HicmaeError(f"{out}: {len(wrong)} things are not as they should be")
        typer.echo(f"{out}: up to date and untouched, every cell complete")
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


def _report_from(archive: Path, name: str | None, columns: str | None, pdf: bool, out: Path, refused: bool) -> None:
    """The report of an archive, and whether its tables are those that were exported."""
    from reports.archive import different_tables, unpacked

    if refused:
        raise UsageError("--from takes the runs from the archive; leave out --runs, --check and --if-changed")
    with unpacked(archive) as (_, folder):
        report(name, columns=columns, pdf=pdf, out=out, runs=folder / "runs")
        count, different = different_tables(folder, out)
    if columns is not None:
        return
    for file in different:
        typer.echo(f"! {file}: not as exported", err=True)
    if different:
        raise HicmaeError(
            f"{len(different)} of {count} table files are not what was exported; is this another version of hicmae?"
        )
    typer.echo(f"tables: all {count} files are those of the archive, bit for bit")


def sync(
    name: Annotated[list[str] | None, typer.Argument(help="Studies; all of them when left out.", show_default=False)] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C, as a service.")] = False,
    if_changed: Annotated[bool, typer.Option("--if-changed", help="Do not even ask MLflow when nothing changed.")] = False,
    every_s: Annotated[float, typer.Option(help="Seconds between two looks with --follow.", min=0.1)] = 10.0,
    patience_s: Annotated[float, typer.Option(help="Seconds for a server that does not answer.", min=0)] = PATIENCE_S,
    upload_models: Annotated[
        bool, typer.Option("--upload-models", help="Copy weights to a server; else it is told where they are.")
    ] = False,
    uri: URI = None,
    runs: RUNS = None,
) -> None:
    """Carry recorded runs into MLflow: only what is new, each thing once."""
    if follow:
        _follow(name, uri, runs or runs_root(), every_s, upload_models, patience_s)
        return
    from hicmae.tracking import is_up_to_date

    if if_changed and not upload_models and is_up_to_date(runs or runs_root(), uri):
        typer.echo("mlflow: up to date")
        return
    typer.echo(_synchronised(name, uri, runs or runs_root(), upload_models=upload_models, patience_s=patience_s))


def after_launch(root: Path, studies: Sequence[str], exit_code: int) -> None:
    """Carry what a launch did into MLflow, unless $HICMAE_SYNC is 0 or it was stopped.

    Where MLflow does not answer, that is said in a line: the records have everything, and `hicmae sync` carries it later.
    """
    known = [name for name in studies if (root / "_studies" / f"{name}.json").exists()]
    if os.environ.get("HICMAE_SYNC") == "0" or exit_code > 1 or not known:
        return
    from hicmae.tracking import is_up_to_date

    try:
        if not is_up_to_date(root, studies=known):
            typer.echo(_synchronised(known, None, root))
    except HicmaeError as error:
        typer.echo(f"! {error}", err=True)


def _follow(name: list[str] | None, uri: str | None, root: Path, every_s: float, upload_models: bool, patience_s: float) -> None:
    """Look again and again. What has been said is not repeated until a look went well: an outage is one line, however long."""
    said: set[str] = set()

    def say(line: str) -> None:
        is_known = "does not answer" in line and any("does not answer" in earlier for earlier in said)
        if line and line not in said and not is_known:
            said.add(line)
            typer.echo(line)

    while True:
        try:
            line = _synchronised(name, uri, root, True, upload_models, patience_s, say)
            said.clear()
            if line:
                typer.echo(line)
        except UsageError:
            raise
        except HicmaeError as error:  # the server is away: only a delay
            say(str(error))
        time.sleep(every_s)


def _synchronised(
    name: list[str] | None,
    uri: str | None,
    root: Path,
    quiet: bool = False,
    upload_models: bool = False,
    patience_s: float = PATIENCE_S,
    say: Callable[[str], None] = typer.echo,
) -> str:
    from hicmae.tracking import default_uri, sync
    from reports.summaries import summaries

    found = sync(
        root, uri, studies=name or None, summarise=summaries, say=say, patience_s=patience_s, upload_models=upload_models
    )
    if quiet and not found.sent_runs:
        return ""
    counts = f"{found.sent_runs} runs sent, {found.unchanged_runs} unchanged, {found.points} points"
    count = "1 study" if found.studies == 1 else f"{found.studies} studies"
    return f"mlflow: {count}, {counts}; {uri or default_uri(root)}"


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
    _serve(port, "--backend-store-uri", address, "--default-artifact-root", artifacts, "--workers", "1")


def mlflow_server(
    backend: Annotated[
        str,
        typer.Option(
            envvar="MLFLOW_BACKEND", help="The database: postgresql://USER:PASSWORD@HOST:PORT/NAME.", show_default=False
        ),
    ] = "",
    artifacts: Annotated[
        Path | None,
        typer.Option(envvar="MLFLOW_ARTIFACTS", help="Folder of the files that it serves.", show_default="RUNS/_mlflow/server"),
    ] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 5000,
    workers: Annotated[int, typer.Option(help="Processes that answer.", min=1)] = 2,
    runs: RUNS = None,
) -> None:
    """Serve MLflow for a group on 127.0.0.1 from PostgreSQL, artifacts included, until Ctrl-C; `hicmae sync --uri` fills it."""
    if not backend.startswith(POSTGRES):
        raise UsageError(
            "the server needs a PostgreSQL database: set MLFLOW_BACKEND=postgresql://USER:PASSWORD@HOST:PORT/NAME "
            "(for one person on one machine, `hicmae ui` needs none)"
        )
    if find_spec("psycopg") is None:
        raise UsageError("the driver of PostgreSQL is not installed: pip install 'hicmae[postgres]'")
    from hicmae.tracking import FOLDER

    _check_free(port)
    folder = artifacts or (runs or runs_root()).resolve() / FOLDER / "server"
    folder.mkdir(parents=True, exist_ok=True)
    typer.echo(f"MLflow: http://127.0.0.1:{port} (Ctrl-C stops it); files in {folder}")
    typer.echo(f"  fill it: MLFLOW_TRACKING_URI=http://127.0.0.1:{port} hicmae sync")
    os.environ["MLFLOW_BACKEND_STORE_URI"] = re.sub(r"^postgresql(\+psycopg)?:", "postgresql+psycopg:", backend)
    destination = ["--serve-artifacts", "--artifacts-destination", folder.resolve().as_uri()]
    _serve(port, *destination, "--default-artifact-root", "mlflow-artifacts:/", "--workers", str(workers))


def _serve(port: int, *options: str) -> None:
    """MLflow's server, until it is stopped; the database's address, which may hold a password, is in no command line."""
    command = [sys.executable, "-m", "mlflow", "server", *options, "--host", "127.0.0.1", "--port", str(port)]
    # Background jobs of the server (scoring of language models) are not for us, nor is its telemetry.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(command, env={**os.environ, **quiet}, check=False)
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
