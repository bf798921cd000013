"""`hicmae reproduce`, `export` and `verify`: run it again, hand it on, check what was handed on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from experiments.cli_runs import RUNS
from hicmae.errors import HicmaeError, UsageError
from hicmae.record import runs_root

PANEL = "Results"
SUFFIX = ".zip"


def register(app: typer.Typer) -> None:
    """Add the commands about repeating and handing on."""
    for command in (reproduce, export, verify):
        app.command(command.__name__, rich_help_panel=PANEL)(command)


def reproduce(
    target: Annotated[
        str,
        typer.Argument(
            help="A run id (or its beginning), or a cell of a table: STUDY/CORPUS/VARIANT, as in provenance.json.",
            metavar="RUN|CELL",
            show_default=False,
        ),
    ],
    with_pretraining: Annotated[
        bool, typer.Option("--with-pretraining", help="Repeat the pre-training too, instead of starting from the recorded one.")
    ] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also where Python, packages or GPUs are not those of the record.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Allowed difference of a metric, in points.", min=0, show_default="the spread over seeds or folds"),
    ] = None,
    max_parallel: Annotated[
        int | None, typer.Option(help="At most so many runs at once.", show_default="what cores, memory and GPUs allow")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
    runs: RUNS = None,
) -> None:
    """Run a run, or all runs of a table's cell, again beside the old ones, and compare.

    Checks code, packages and data first. The verdict is bit-identical, within the spread, or DIFFERENT (exit code 1).
    """
    from experiments.reproduce import Request, repeat_and_compare, show

    console = Console(stderr=as_json)
    report = repeat_and_compare(Request(runs or runs_root(), target, with_pretraining, anyway, tolerance, max_parallel), console)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
    else:
        show(console, report)
    raise typer.Exit(1 if report.is_different else 0)


def export(
    study: Annotated[str, typer.Argument(help="A launched study.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File or folder to write to.", show_default="STUDY.zip here")
    ] = None,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="With weights and resume points (large).")] = False,
    runs: RUNS = None,
) -> None:
    """Write one archive of a study: configurations, code, records, predictions, tables, lock file and checksums."""
    from reports import archive

    target = _target(output or Path(), study)
    console = Console(stderr=True)
    with Progress(*Progress.get_default_columns(), console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"exporting {study}", total=None)
        made = archive.export(
            runs or runs_root(),
            study,
            target,
            checkpoints,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for note in made.notes:
        typer.echo(f"! {note}", err=True)
    typer.echo(f"archive: {made.path} ({made.files} files, {made.bytes / 1e6:.1f} MB)")
    typer.echo(f"check it: hicmae verify {made.path}    tables from it: hicmae report --from {made.path}")


def _target(output: Path, study: str) -> Path:
    target = output / f"{study}{SUFFIX}" if output.is_dir() else output
    if target.suffix != SUFFIX:
        raise UsageError(f"{target}: an archive is a {SUFFIX} file; name it {target.name.partition('.')[0]}{SUFFIX}")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent}: no such folder; make it first")
    return target


def verify(
    archive: Annotated[
        Path, typer.Argument(help="An archive of `hicmae export`, or a folder unpacked from it.", show_default=False)
    ],
) -> None:
    """Check every file of an archive against its checksum; name every one that is damaged, missing or extra."""
    from reports.archive import verify as verified

    found = verified(archive)
    for problem in found.problems:
        typer.echo(problem)
    if found.problems:
        raise HicmaeError(f"{archive}: not as it was exported (problems: {len(found.problems)}); get the archive again")
    typer.echo(f"{archive}: all {found.files} files are as they were exported")
