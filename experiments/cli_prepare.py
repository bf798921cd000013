"""`hicmae data prepare`: from a corpus as distributed to 16 kHz mono sound and face crops.

hicmae data prepare crema_d        # then csv:data/prepared/crema_d/prepared.csv is a corpus to train on
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from hicmae.errors import HicmaeError

if TYPE_CHECKING:
    from hicmae.data.prepare.clip import Found
    from hicmae.data.prepare.pipeline import Summary

LISTED = 10  # clips that cannot be used, in the summary; faces.csv has all
LINES = 20  # of progress where there is no terminal
RARE = 0.5  # detection rate below which a clip is worth a look


def prepare_command(
    corpus: Annotated[str, typer.Argument(help="A name that `hicmae data list` shows, or list:PATH, folder:PATH, csv:PATH.")],
    out: Annotated[Path, typer.Option(help="Files go into a folder of the corpus' name below this one.")] = Path("data/prepared"),
    size: Annotated[int, typer.Option(help="Width and height of the crops in pixels.")] = 160,
    margin: Annotated[float, typer.Option(help="Room around the face, as a share of its size, both sides together.")] = 0.3,
    align: Annotated[bool, typer.Option("--align/--no-align", help="Turn the crops so that the eyes are level.")] = False,
    every: Annotated[int, typer.Option(help="Look for faces in every N-th frame; in between the place is interpolated.")] = 5,
    format_: Annotated[str, typer.Option("--format", help="mp4, or pictures: a folder of JPEG files per clip.")] = "mp4",
    modality: Annotated[str, typer.Option(help="AV, A (sound alone) or V (faces alone).")] = "AV",
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="all cores")] = None,
    on_error: Annotated[str, typer.Option(help="Clips that cannot be used: fail (no manifest) or skip (left out).")] = "fail",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N clips.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON.")] = False,
) -> None:
    """Cut out faces and extract sound; run it again to go on where it stopped.

    Any number of these commands, on any number of machines, can work on the same folder at once.
    """
    from hicmae.data.prepare.clip import Settings
    from hicmae.data.prepare.pipeline import prepare

    settings = Settings(size, margin, align, every, format_, modality)
    with _progress(corpus) as progress, _stopped_once():
        summary = prepare(corpus, out, settings, jobs=jobs, on_error=on_error, limit=limit, progress=progress)
    values = as_values(summary)
    if as_json:
        typer.echo(json.dumps(values, indent=1, ensure_ascii=False))
    else:
        _show(values)
    if summary.manifest is None:
        count = f"{len(summary.problems)} of {len(summary.found)} clips cannot be used (see {values['faces']})"
        usable = len(summary.problems) < len(summary.found)
        remedy = "mend them or leave them out with --on-error skip" if usable else "none is left to train from"
        raise HicmaeError(f"{corpus}: {count}; {remedy}")


@contextmanager
def _stopped_once() -> Iterator[None]:
    """Once stopped by Ctrl-C, the command only ends, and more of it would break that off."""
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise


def as_values(summary: Summary) -> dict[str, Any]:
    """The summary as plain values; `rare` are clips whose face is missing in more than half of the examined frames."""
    rates = {name: found.rate for name, found in summary.found.items() if found.examined}
    problems = [{"sample_id": name, "path": found.path, "reason": found.reason} for name, found in summary.problems.items()]
    return {
        "corpus": summary.corpus,
        "folder": str(summary.folder),
        "manifest": summary.manifest and str(summary.manifest),
        "faces": str(summary.folder / "faces.csv"),
        "clips": summary.clips,
        "done_before": summary.done_before,
        "seconds": round(summary.seconds, 2),
        "mean_detection_rate": round(sum(rates.values()) / len(rates), 4) if rates else None,
        "rare": sorted(name for name, rate in rates.items() if rate < RARE and name not in summary.problems),
        "problems": problems,
    }


def _show(values: dict[str, Any]) -> None:
    done = values["clips"] - values["done_before"]
    speed = f", {done / values['seconds']:.2f} a second" if done and values["seconds"] else ""
    before = f", {values['done_before']} done before" if values["done_before"] else ""
    lines = [f"{values['corpus']}: {done} {'clip' if done == 1 else 'clips'} in {values['seconds']:.1f} s{speed}{before}"]
    if values["mean_detection_rate"] is not None:
        lines.append(f"the face is seen in {values['mean_detection_rate']:.1%} of the examined frames")
    if rare := values["rare"]:
        lines.append(f"seen in less than half of them, worth a look: {', '.join(rare[:LISTED])}{_more(rare)}")
    lines += [f"cannot be used: {problem['path']}: {problem['reason']}" for problem in values["problems"][:LISTED]]
    lines += [f"cannot be used:{_more(values['problems'])}"] if _more(values["problems"]) else []
    lines += [f"train from it as corpus csv:{values['manifest']}"] if values["manifest"] else []
    for line in lines:
        typer.echo(line)


def _more(items: list[Any]) -> str:
    return f" and {len(items) - LISTED} more" if len(items) > LISTED else ""


@contextmanager
def _progress(corpus: str) -> Iterator[Callable[[int, int, str, Found | None], None]]:
    """On a terminal a bar, elsewhere a line now and then; clips that cannot be used have a line of their own, on stderr."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(f"preparing {corpus}", total=None)

        def advance(done: int, total: int, sample_id: str, found: Found | None) -> None:
            bar.update(task, completed=done, total=total)
            if found is not None and found.reason:
                console.print(Text(f"{sample_id}: {found.path}: {found.reason}"), style="yellow", soft_wrap=True)
            if bar.disable and done * LINES // total > (done - 1) * LINES // total:
                console.print(f"{corpus}: {done} of {total} clips", highlight=False)

        yield advance
