"""Who works on which trial: locks that the system frees when a worker dies, and a sign of life where locks cannot be trusted.

A worker holds `claims/<number>.lock` while a trial is its own, and touches `claims/<number>.json` every few seconds. The trial
of a dead worker can be taken over: at once on the machine where it died, elsewhere when the sign of life is old. So a trial
has one owner even on filesystems whose locks do not reach from one machine to another.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, SoftFileLease, Timeout

from hicmae.record import write_json

BEAT_S = 5.0
SILENT_S = 60.0  # after which a worker on another machine counts as dead
POLL_S = 0.005


class SharedLock:
    """Excludes all other processes of all machines that see the folder.

    The kernel's lock comes first: the processes of one machine queue there, and a killed one leaves nothing behind. Then a
    marker file excludes the other machines, also where the filesystem's kernel locks end at the machine; one that a dead
    machine left is taken after SILENT_S.
    """

    def __init__(self, path: Path) -> None:
        self._kernel = FileLock(str(path), poll_interval=POLL_S)
        self._path = Path(f"{path}.marker")
        self._marker = SoftFileLease(self._path, poll_interval=POLL_S, lease_duration=SILENT_S)

    def acquire(self) -> None:
        self._kernel.acquire()
        try:
            # The kernel's lock says that nobody here holds it: a marker of this machine is a dead process's.
            with suppress(FileNotFoundError):
                if f"host={socket.gethostname()}" in self._path.read_text().split():
                    self._path.unlink()
            self._marker.acquire()
        except BaseException:
            self._kernel.release()
            raise

    def release(self) -> None:
        self._marker.release()
        self._kernel.release()

    def __enter__(self) -> SharedLock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


@dataclass
class Claim:
    """A trial that is this process's own until it is released; its sign of life is given by a thread."""

    path: Path  # without suffix
    lock: FileLock
    takeovers: int  # how many workers died over this trial
    _over: threading.Event = field(default_factory=threading.Event)
    _beating: threading.Thread | None = None

    def begin(self, beat_s: float = BEAT_S) -> Claim:
        self._beating = threading.Thread(target=self._beat, args=(beat_s,), daemon=True)
        self._beating.start()
        return self

    def release(self, finished: bool) -> None:
        """Give the trial back or, when it is finished, forget the claim."""
        self._over.set()
        if self._beating is not None:
            self._beating.join()
        if finished:
            self.path.with_suffix(".json").unlink(missing_ok=True)
        self.lock.release()
        if finished:
            self.path.with_suffix(".lock").unlink(missing_ok=True)

    def _beat(self, beat_s: float) -> None:
        while not self._over.wait(beat_s):
            with suppress(FileNotFoundError):  # taken over by a worker that believed this one dead
                os.utime(self.path.with_suffix(".json"))


class Claims:
    """The claims of a study; `take` must be called under the study's lock."""

    def __init__(self, folder: Path, silent_s: float = SILENT_S) -> None:
        self.folder, self.silent_s = folder, silent_s
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, number: int) -> Claim | None:
        """Own a trial; None when a living worker does."""
        path = self.folder / f"{number:04d}"
        lock = FileLock(str(path.with_suffix(".lock")), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return None
        before = _read(path.with_suffix(".json"))
        if before and before.get("host") != socket.gethostname() and self._silence_s(path.with_suffix(".json")) < self.silent_s:
            lock.release()
            return None
        takeovers = int(before["takeovers"]) + 1 if before else 0
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "takeovers": takeovers, "since": time.time()}
        write_json(path.with_suffix(".json"), owner)
        return Claim(path, lock, takeovers).begin()

    def _silence_s(self, path: Path) -> float:
        """How long ago the owner gave a sign of life, by the clock of the filesystem."""
        clock = self.folder / f".clock-{socket.gethostname()}-{os.getpid()}"
        clock.touch()
        now_s = clock.stat().st_mtime
        clock.unlink()
        return now_s - path.stat().st_mtime


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
