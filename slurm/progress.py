"""How far a run has come, read from the files that it appends to; each refresh reads only what is new."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOSS_FIRST = ("UAR", "WAR", "WF1", "loss")  # which value of the last point is worth a glance


@dataclass
class Progress:
    """Steps done and to do in a run, and its last values."""

    path: Path
    total_steps: int = 0
    step: int = 0
    epoch: float = 0.0
    values: dict[str, dict[str, float]] = field(default_factory=dict)  # by split
    _since: tuple[float, int] | None = None  # when this attempt began to count, and at which step
    _last_time: float = 0.0
    _offsets: dict[str, int] = field(default_factory=dict)

    def refresh(self) -> Progress:
        for line in self._new_lines("events.jsonl"):
            self._take_event(line)
        for line in self._new_lines("metrics.jsonl"):
            self._take_metrics(line)
        return self

    @property
    def share(self) -> float:
        """Of the run that is done, 0 to 1."""
        return min(1.0, self.step / self.total_steps) if self.total_steps else 0.0

    def remaining_s(self, now: float) -> float | None:
        """Seconds left at the pace of this attempt; None while the pace is unknown."""
        if self._since is None or self.step <= self._since[1] or not self.total_steps:
            return None
        began, first = self._since
        pace_s = (self._last_time - began) / (self.step - first)
        return max(0.0, (self.total_steps - self.step) * pace_s - (now - self._last_time))

    def headline(self) -> str:
        """The most telling last value, such as `UAR 71.2` or `loss 0.53`."""
        for split in ("test", "validation", "train"):
            values = self.values.get(split, {})
            for name in LOSS_FIRST:
                if name in values:
                    return f"{name} {values[name]:.4g}"
        return ""

    def _take_event(self, line: dict[str, Any]) -> None:
        if line.get("event") == "started":
            self.total_steps = int(line.get("total_steps") or self.total_steps)
            self.step = int(line.get("step") or self.step)
            self._since = (float(line["time"]), self.step)
        elif line.get("event") == "checkpoint":
            self._advance(line)

    def _take_metrics(self, line: dict[str, Any]) -> None:
        if isinstance(line.get("values"), dict) and "split" in line:
            self.values[str(line["split"])] = line["values"]
            self.epoch = float(line.get("epoch") or self.epoch)
            self._advance(line)

    def _advance(self, line: dict[str, Any]) -> None:
        step, time_s = int(line.get("step") or 0), float(line.get("time") or 0.0)
        earlier_attempt = self._since is not None and time_s < self._since[0]  # its work after the last checkpoint was lost
        if step >= self.step and time_s > self._last_time and not earlier_attempt:
            self.step, self._last_time = step, time_s

    def _new_lines(self, name: str) -> Iterator[dict[str, Any]]:
        path = self.path / name
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._offsets.get(name, 0))
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                self._offsets[name] = self._offsets.get(name, 0) + len(line)
                yield from _parsed(line)


def _parsed(line: bytes) -> Iterator[dict[str, Any]]:
    try:
        values = json.loads(line)
    except ValueError:
        return
    if isinstance(values, dict):
        yield values
