"""Files that a command writes at its end: whether they can be written is found out before the work."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import typer

from hicmae.errors import UsageError


def writable_file(path: Path) -> Path:
    """The path, if a file can be written there; missing folders above it are made. Raises UsageError otherwise."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give the name of a file")
    if path.exists() and os.access(path, os.W_OK):  # perhaps a device or a pipe, beside which nothing can be made
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}); give another place") from None
    return path


JSON_FILE = typer.Option("--output", "-o", help="Where the JSON goes.", callback=writable_file)
