"""`hicmae data generate`: make the generated corpus, or a small corpus in the layout of a published one.

hicmae data generate                              # where studies look for it
hicmae data generate DIR --layout crema_d         # then: HICMAE_DATA or data.toml may point to it
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def generate_command(
    root: Annotated[
        Path | None, typer.Argument(help="The folder; without it, the one in which studies look for the generated corpus.")
    ] = None,
    speakers: Annotated[int, typer.Option(help="People, each with a face and a voice; a fold tests on its own.")] = 36,
    clips: Annotated[int, typer.Option(help="Clips of each speaker, a multiple of the 4 classes.")] = 8,
    seconds: Annotated[float, typer.Option(help="Length of a clip.", min=0.2)] = 2.0,
    size: Annotated[int, typer.Option(help="Width and height of the picture in pixels.")] = 96,
    seed: Annotated[int, typer.Option(help="Another seed makes other people and other clips.")] = 0,
    folds: Annotated[int, typer.Option(help="Folds, with disjoint speakers.")] = 3,
    processes: Annotated[int | None, typer.Option(help="Cores to use; all unless given. Changes nothing in the files.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="Write a few clips as this corpus is distributed, for instance crema_d.")
    ] = None,
) -> None:
    """Make the generated corpus: animated faces with voices, as real media files.

    Arousal is only in the voice and valence only in the face, so the four classes need both streams.

    An interrupted generation goes on where it stopped; a finished one is left as it is.
    """
    console = Console(stderr=True)
    if layout is not None:
        _write_layout(layout, root, seconds, size, seed)
        return
    from hicmae.data import location, synthetic

    place = root or location.corpus_root("synthetic")
    columns = (TextColumn("clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("clips", total=None)
        synthetic.generate(
            place,
            speakers,
            clips,
            seconds,
            size,
            seed,
            folds,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            processes=processes,
        )
    typer.echo(f"{speakers * clips} clips of {speakers} speakers in {place}")


def _write_layout(name: str, root: Path | None, seconds: float, size_px: int, seed: int) -> None:
    from hicmae.data import synthetic
    from hicmae.errors import UsageError

    if root is None:
        raise UsageError(f"--layout {name} needs a folder: hicmae data generate DIR --layout {name}")
    synthetic.write_layout(name, root, seconds, size_px, seed)
    typer.echo(f"generated clips in the layout of {name} in {root}")
