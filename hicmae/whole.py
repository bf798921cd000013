"""Files that are there whole or not at all.

with written_whole(path) as temporary:
    temporary.write_text(text)
"""

from __future__ import annotations

import os
import platform
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A hidden name beside `path`, of this machine, process and thread alone; it becomes `path` when the block ends well.

    When it does not, it is removed and an older file stays. What must survive a power failure is synced in the block (`sync`).
    A device, a pipe, or a file in a folder that takes no other is written in place.
    """
    if path.exists() and not path.is_dir() and not (path.is_file() and os.access(path.parent, os.W_OK, effective_ids=True)):
        yield path
        return
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(file: IO[Any]) -> None:
    """Wait until the disk has what was written; devices and pipes have no disk."""
    file.flush()
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        os.fsync(file.fileno())


def write_png(figure: Figure, path: Path, **options: Any) -> Path:
    """Write a picture, making its folder; `options` are those of `savefig`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # names in any script; a box stands for it
        figure.savefig(temporary, format="png", **options)
    return path
