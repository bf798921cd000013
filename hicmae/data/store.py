"""Packed files of records: the lowest layer of the clip store. One file holds many records and is never changed once written.

    records | index | footer (position, length and digest of the index, magic)

A pack is written under a temporary name, synced and renamed, so that it is there whole or not at all. Opening checks the
footer and the index, reading checks the record: a pack that fails either is damaged, is removed, and is built again.
Records are memory-mapped, so readers on one machine share the page cache.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hicmae.whole import sync, written_whole

_MAGIC = b"HICMAEP1"
_FOOTER = struct.Struct("<QQ16s8s")


class PackDamaged(Exception):
    """A pack whose bytes are not those that were written."""


def write_pack(path: Path, records: Iterable[bytes | str]) -> None:
    """Write records in order; a string is the reason why there is no record."""
    with written_whole(path) as temporary, temporary.open("wb") as file:
        ends, errors, position = [], {}, 0
        for number, record in enumerate(records):
            if isinstance(record, str):
                errors[str(number)] = record
            else:
                position += file.write(record)
            ends.append(position)
        index = struct.pack("<Q", len(ends)) + np.asarray(ends, "<u8").tobytes() + json.dumps(errors).encode()
        file.write(index)
        file.write(_FOOTER.pack(position, len(index), _digest(index), _MAGIC))
        sync(file)


class Pack:
    """A pack opened for reading. Raises PackDamaged when its end is not as written, FileNotFoundError when it is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < _FOOTER.size:
                raise PackDamaged(f"{path}: too short")
            file.seek(size - _FOOTER.size)
            position, length, digest, magic = _FOOTER.unpack(file.read(_FOOTER.size))
            if magic != _MAGIC or position + length + _FOOTER.size != size:
                raise PackDamaged(f"{path}: footer does not match")
            file.seek(position)
            index = file.read(length)
            if _digest(index) != digest:
                raise PackDamaged(f"{path}: index does not match its digest")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        (count,) = struct.unpack_from("<Q", index)
        ends: NDArray[np.uint64] = np.frombuffer(index, "<u8", count, 8)
        self._edges = np.concatenate([np.zeros(1, np.uint64), ends])
        self.errors: dict[int, str] = {int(number): reason for number, reason in json.loads(index[8 + 8 * count :]).items()}

    def __len__(self) -> int:
        return len(self._edges) - 1

    def record(self, number: int) -> memoryview:
        """The bytes of a record, not copied."""
        return memoryview(self._bytes)[int(self._edges[number]) : int(self._edges[number + 1])]


def _digest(index: bytes) -> bytes:
    return hashlib.blake2b(index, digest_size=16).digest()


def pack_parts(parts: Sequence[bytes]) -> bytes:
    """One record of many parts that can be read one by one: count, sizes, check sums, parts."""
    sizes = np.asarray([len(part) for part in parts], "<u4")
    sums = np.asarray([zlib.crc32(part) for part in parts], "<u4")
    return struct.pack("<I", len(parts)) + sizes.tobytes() + sums.tobytes() + b"".join(parts)


class Parts:
    """The parts of a record, checked when they are read."""

    def __init__(self, record: memoryview) -> None:
        try:
            (self.count,) = struct.unpack_from("<I", record)
            sizes = np.frombuffer(record, "<u4", self.count, 4)
            self._sums = np.frombuffer(record, "<u4", self.count, 4 + 4 * self.count)
        except (struct.error, ValueError):
            raise PackDamaged("a record is shorter than it says") from None
        self._edges = 4 + 8 * self.count + np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
        self._record = record
        if self._edges[-1] != len(record):
            raise PackDamaged("a record is not as long as its parts")

    def part(self, number: int) -> memoryview:
        """One part. Raises PackDamaged when its check sum does not match."""
        part = self._record[int(self._edges[number]) : int(self._edges[number + 1])]
        if zlib.crc32(part) != self._sums[number]:
            raise PackDamaged(f"part {number} of a record does not match its check sum")
        return part
