"""Checkpoints that survive: written aside, synced, renamed; checksummed; the last two good ones kept.

    checkpoints/step-00000123/state.safetensors   whole float32 tensors, see Engine.state
    checkpoints/step-00000123/state.json          the position and all other numbers, with the checksums of both files

No random state is stored: hicmae/seeding.py derives every random choice from the seed and the position.
A checkpoint does not depend on the number of processes or the ZeRO stage that wrote it. Only the main process writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hicmae.errors import HicmaeError, RecordError
from hicmae.whole import written_whole

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 2
_FORMAT = 1
_TENSORS, _NUMBERS = "state.safetensors", "state.json"
_DAMAGED = "damaged-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: `numbers` is what was given to `save`."""

    path: Path
    step: int
    numbers: dict[str, Any]
    tensors: dict[str, Tensor]


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Path:
    """Write folder/step-<step> whole or not at all, then remove all but the last two.

    Raises HicmaeError when the disk is full or the write fails otherwise; older checkpoints are then as they were.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    try:
        _write(temporary, final, step, tensors, numbers)
    except Exception as error:
        if not _is_io(error):
            raise
        raise HicmaeError(
            f"cannot write the checkpoint {final}: {_one_line(error)}; free space there and launch the run again"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in [*_found(folder)[:-KEPT], *folder.glob(f"{_DAMAGED}*"), *folder.glob(".step-*.tmp")]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest(folder: Path, rename_damaged: bool = True) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None; a damaged one is named in a warning and passed over.

    Raises RecordError when there are checkpoints and none is whole: to start from nothing would throw away work unasked.
    """
    found = _found(folder)
    for path in reversed(found):
        if whole := _read_or_warn(path, rename_damaged):
            return whole
    if found:
        raise RecordError(f"{folder}: every checkpoint is damaged; delete that folder to start from the beginning")
    return None


def read(path: Path) -> Checkpoint:
    """Read one checkpoint. Raises RecordError unless every byte is as it was written."""
    from safetensors.torch import load_file

    try:
        numbers = json.loads((path / _NUMBERS).read_text())
        if numbers.pop("sha256") != _digest_of(numbers):
            raise RecordError(f"{path}/{_NUMBERS}: the checksum is wrong")
        if numbers["format"] != _FORMAT:
            raise RecordError(f"{path}: has format {numbers['format']}, this version reads {_FORMAT}")
        if numbers["tensors_sha256"] != file_digest(path / _TENSORS):
            raise RecordError(f"{path}/{_TENSORS}: the checksum is wrong")
        return Checkpoint(path, numbers["step"], numbers["numbers"], load_file(path / _TENSORS))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise RecordError(f"{path}: unreadable ({_one_line(error)})") from None


def _read_or_warn(path: Path, rename_damaged: bool) -> Checkpoint | None:
    try:
        return read(path)
    except RecordError as error:
        warnings.warn(f"{error}; going on from the checkpoint before it", stacklevel=3)
    if rename_damaged:
        path.rename(path.with_name(f"{_DAMAGED}{path.name}"))
    return None


def save_weights(path: Path, weights: Mapping[str, Tensor], **about: str) -> None:
    """Write a model's state dict as one safetensors file, whole or not at all. Raises HicmaeError when that fails."""
    _write_whole(path, lambda temporary: _save_tensors(temporary, weights, about))


def copy_weights(source: Path, path: Path) -> None:
    """Copy a file of weights, whole or not at all. Raises HicmaeError when that fails."""
    _write_whole(path, lambda temporary: shutil.copyfile(source, temporary))


def remove_all(folder: Path) -> None:
    """Remove what only an unfinished run needs; weights stay."""
    for path in [*_found(folder), *folder.glob(f"{_DAMAGED}*"), *folder.glob(".step-*.tmp"), folder / "selected"]:
        shutil.rmtree(path, ignore_errors=True)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    try:
        with written_whole(path) as temporary:
            write(temporary)
            _sync(temporary)
        _sync(path.parent)
    except Exception as error:
        if not _is_io(error):
            raise
        raise HicmaeError(
            f"cannot write the weights {path}: {_one_line(error)}; free space there and launch the run again"
        ) from None


def _write(temporary: Path, final: Path, step: int, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    temporary.mkdir(parents=True)
    _save_tensors(temporary / _TENSORS, tensors, {})
    _sync(temporary / _TENSORS)
    content = {
        "format": _FORMAT,
        "step": step,
        "numbers": dict(numbers),
        "tensors_sha256": file_digest(temporary / _TENSORS),
    }
    with (temporary / _NUMBERS).open("w") as file:
        json.dump({**content, "sha256": _digest_of(content)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync(temporary)
    if final.exists():  # the same step again: a run that was stopped just where it had saved
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(final.parent)


def _save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, metadata=dict(about))


def _sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-????????"))


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_io(error: Exception) -> bool:
    from safetensors import SafetensorError

    return isinstance(error, (OSError, SafetensorError))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
