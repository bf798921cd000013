"""Signals that ask a run to stop: noted at once, acted upon after the step at hand."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from hicmae.errors import HicmaeError

# What Ctrl-C, schedulers and submitit send.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Preempted(HicmaeError):
    """The run was asked to stop, has saved its state and goes on when it is executed again."""

    exit_code = 75  # EX_TEMPFAIL: whoever started the run may start it again


class StopRequest:
    """Inside the block, the first signal is noted in `name` and a second one works as usual (Ctrl-C twice stops at once).

    In threads other than the main one, where Python takes no signals, nothing is noted.
    """

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
