"""What a person sees while runs are executed here: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from slurm.local import Entry
from slurm.machine import Share

REPORT_EVERY_S = 60.0  # between the summaries of the plain view
COLUMNS = {"run": 8, "what": 16, "state": 7, "progress": 12, "time": 10, "last value": 10}  # least widths
RECENT = 6  # finished runs that stay in the live table
STYLES = {
    "done": "green",
    "running": "cyan",
    "elsewhere": "cyan",
    "failed": "bold red",
    "blocked": "red",
    "cancelled": "yellow",
    "interrupted": "yellow",
}
ORDER = ("done", "running", "elsewhere", "waiting", "interrupted", "failed", "blocked", "cancelled")


def duration(seconds: float | None) -> str:
    """`42 s`, `3 min 05 s`, `7 h 10 min`, `3 d 4 h`; a dash when unknown."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def remaining_s(board: Sequence[Entry], at_once: int) -> float | None:
    """Seconds until everything is done: what running runs have left, and for others the mean of finished ones of their stage."""
    now, total, longest = time.time(), 0.0, 0.0
    means = _mean_durations(board)
    for entry in board:
        if entry.state not in ("waiting", "running"):
            continue
        expected = means.get(entry.job.stage, entry.job.expected_s)
        left = entry.progress.remaining_s(now) if entry.state == "running" else None
        if left is None and expected is not None:
            left = max(0.0, expected - (now - entry.began if entry.state == "running" else 0.0))
        if left is None:
            return None
        total, longest = total + left, max(longest, left)
    return max(total / at_once, longest)


def counts(board: Sequence[Entry]) -> str:
    """`12 done, 2 running, 14 waiting`."""
    found = Counter(entry.state for entry in board)
    return ", ".join(f"{found[state]} {state}" for state in ORDER if found[state])


def summary(board: Sequence[Entry], division: Share) -> str:
    """How many runs are in which state, and how long the rest may take."""
    left = remaining_s(board, division.at_once)
    return counts(board) + (f"; about {duration(left)} left" if left else "")


class LiveView:
    """A table that redraws itself: running runs with progress, the last finished ones, every failed one, and a summary."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, refresh_per_second=4)

    def __enter__(self) -> LiveView:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def changed(self, entry: Entry, board: Sequence[Entry]) -> None:
        if entry.state in ("failed", "blocked"):
            self.console.print(Text(f"{entry.state}: {entry.job.label}: {entry.reason}", style=STYLES[entry.state]))

    def refresh(self, board: Sequence[Entry], division: Share) -> None:
        self.live.update(draw(board, division))

    def say(self, line: str) -> None:
        self.console.print(line)


class PlainView:
    """One line for each change, and a summary every minute: for pipes, logs and CI."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last_report = time.monotonic()

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def changed(self, entry: Entry, board: Sequence[Entry]) -> None:
        final = sum(other.ended > 0 for other in board)
        what = f"{entry.state}, tried again" if entry.state == "waiting" else entry.state
        entry.progress.refresh()
        details = [entry.reason, entry.progress.headline(), _took(entry) if entry.ended else ""]
        self.say(f"[{final}/{len(board)}] {entry.job.label}: {'; '.join([what, *filter(None, details)])}")

    def refresh(self, board: Sequence[Entry], division: Share) -> None:
        if time.monotonic() - self.last_report > REPORT_EVERY_S:
            self.last_report = time.monotonic()
            for entry in board:
                entry.progress.refresh() if entry.state == "running" else None
            self.say(summary(board, division))

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def view_for(console: Console) -> LiveView | PlainView:
    """The live table on a terminal, lines elsewhere."""
    return LiveView(console) if console.is_terminal else PlainView(console)


def draw(board: Sequence[Entry], division: Share) -> RenderableType:
    """The board as a table of the entries worth showing, with a summary below."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, width in COLUMNS.items():
        table.add_column(name, no_wrap=True, min_width=width, ratio=1 if name == "what" else None)
    for entry in _shown(board):
        table.add_row(*_row(entry))
    bar = Table.grid(padding=(0, 1))
    done = sum(entry.state == "done" for entry in board)
    bar.add_row(ProgressBar(total=max(len(board), 1), completed=done, width=40), f"{done} of {len(board)}")
    shares = f"{division.at_once} at once, {_counted(division.threads, 'thread')} each"
    return Group(table, Text(), bar, Text(f"{summary(board, division)}; {shares}", style="dim"))


def _shown(board: Sequence[Entry]) -> list[Entry]:
    finished = sorted((entry for entry in board if entry.state == "done" and entry.began), key=lambda entry: entry.ended)
    busy = [entry for entry in board if entry.state in ("running", "elsewhere")]
    broken = [entry for entry in board if entry.state in ("failed", "cancelled", "interrupted")]
    return [*finished[-RECENT:], *broken[-RECENT:], *busy]


def _row(entry: Entry) -> tuple[RenderableType, ...]:
    progress = entry.progress.refresh()
    if entry.state == "running":
        left = progress.remaining_s(time.time())
        bar: RenderableType = ProgressBar(total=1.0, completed=progress.share, width=COLUMNS["progress"])
        took = Text(f"{duration(left)} left" if left is not None else "")
    else:
        bar, took = Text(""), Text(duration(entry.ended - entry.began) if entry.began else "", style="dim")
    state = Text(entry.state, style=STYLES.get(entry.state, ""))
    return entry.job.run_id[:8], Text(entry.job.label), state, bar, took, Text(progress.headline())


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _took(entry: Entry) -> str:
    return f"took {duration(entry.ended - entry.began)}" if entry.began else ""


def _mean_durations(board: Sequence[Entry]) -> dict[str, float]:
    spans: dict[str, list[float]] = {}
    for entry in board:
        if entry.state == "done" and entry.began:
            spans.setdefault(entry.job.stage, []).append(entry.ended - entry.began)
    return {stage: sum(values) / len(values) for stage, values in spans.items()}
