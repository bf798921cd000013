"""Workers of a search on this machine: so many processes as cores, memory and GPUs allow, replaced when they are killed.

The pool holds nothing that its own death would lose: killed outright, its workers go on until the budget is spent.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from experiments import cost, execution
from experiments.available import Fingerprints
from experiments.search.definition import Search, trial_name
from experiments.search.study import Row, Study, ranked
from experiments.search.worker import STOPPED
from hicmae.errors import HicmaeError, UsageError
from slurm.local import GRACE_S, on_stop_signals
from slurm.machine import Machine, Share, share

POLL_S = 0.2
SHOW_EVERY_S = 1.0
MAX_BARREN = 5  # workers lost in a row, per place, without any trial finished in between


def division(search: Search, prints: Fingerprints, workers: int | None) -> Share:
    """How this machine is divided among workers."""
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: must be at least 1")
    memory = 1 << 28
    if search.function is None:
        memory = max(cost.memory(run.config) for run in search.trial_runs(0, {}, 1, prints))
    return share(Machine.here(), memory, workers) if workers is None or search.function is None else Share(workers, 1, 0)


class News:
    """Says of every trial, once, how it ended."""

    def __init__(self, study: Study, console: Console) -> None:
        self.study, self.console = study, console
        self._shown = {row.number for row in study.rows() if row.state not in ("running", "waiting")}

    def show(self) -> int:
        """Print what is new; returns how many trials have ended since the last call."""
        rows = self.study.rows()
        new = [row for row in rows if row.number not in self._shown and row.state not in ("running", "waiting")]
        for row in new:
            self._shown.add(row.number)
            seen = [other for other in rows if other.number in self._shown]
            self.console.print(line_of(self.study.search, row, seen), highlight=False, soft_wrap=True)
        return len(new)


@dataclass
class _Place:
    """A place for a worker, with its share of the machine."""

    number: int
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None


class Pool:
    """Keeps `at_once` workers at a search until its budget is spent."""

    def __init__(self, study: Study, arguments: Sequence[str], division: Share, code: Path, console: Console) -> None:
        self.study, self.arguments, self.code, self.console = study, arguments, code, console
        self.places = list(_places(study.folder / "log", division))
        self.stopping = 0
        self.barren = 0
        self._news = News(study, console)

    def run(self) -> int:
        """Work to the end; returns the exit code: 0 when the budget is spent, 1 when workers gave up, 130 when stopped."""
        with on_stop_signals(self._count_stop):
            for place in self.places:
                self._start(place)
            shown = 0.0
            while any(place.process is not None for place in self.places) and not self.stopping:
                for place in self.places:
                    self._look_after(place)
                if time.monotonic() - shown > SHOW_EVERY_S:
                    self._show_news()
                    shown = time.monotonic()
                time.sleep(POLL_S)
            if self.stopping:
                self._stop_all()
        self._show_news()
        return 130 if self.stopping else 0

    def _start(self, place: _Place) -> None:
        place.log.parent.mkdir(parents=True, exist_ok=True)
        with place.log.open("ab") as log:
            place.process = subprocess.Popen(
                [sys.executable, "-m", "experiments.search.worker", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **execution.environment_of_runs(), **place.environment},
                cwd=self.code,
                start_new_session=True,
            )

    def _look_after(self, place: _Place) -> None:
        """Replace a worker that was killed; take note of one that ended. Raises HicmaeError when workers cannot work."""
        code = place.process.poll() if place.process else None
        if code is None or place.process is None:
            return
        process, place.process = place.process, None
        if code in (0, STOPPED):
            if code == 0 and not self.study.is_spent() and not any(other.process for other in self.places):
                self._start(place)  # another one died meanwhile, and its trial is to be taken over
            return
        if code > 0:
            self._stop_all()
            raise HicmaeError(f"{_last_line(place.log) or f'a worker ended with exit code {code}'} (log: {place.log})")
        self.barren += 1
        if self.barren > MAX_BARREN * len(self.places):
            self._stop_all()
            raise HicmaeError(f"workers are killed one after the other without finishing a trial; see {place.log}")
        self.console.print(
            f"worker {process.pid} was killed by {signal.Signals(-code).name}; its trial is taken over", highlight=False
        )
        self._start(place)

    def _show_news(self) -> None:
        if self._news.show():
            self.barren = 0

    def _stop_all(self) -> None:
        """Ask the workers to let their runs write checkpoints; a second signal, or the end of patience, kills them."""
        running = [place.process for place in self.places if place.process and place.process.poll() is None]
        if running:
            self.console.print(f"stopping: {len(running)} workers let their runs write a checkpoint (again to kill them)")
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline, asked = time.monotonic() + 2 * GRACE_S, self.stopping
        while any(process.poll() is None for process in running):
            if time.monotonic() > deadline or self.stopping > asked:
                for process in running:
                    process.kill()
            time.sleep(POLL_S)

    def _count_stop(self) -> None:
        self.stopping += 1


def line_of(search: Search, row: Row, rows: Sequence[Row]) -> str:
    """How a trial ended, and how far the search is with the trials that ended so far, in one line."""
    name = "value" if search.function else f"validation {search.metric}"
    budget = f" of {search.budget.trials}" if search.budget.trials else ""
    result = f"{name} {row.value:.6g}" if row.state == "done" else f"{row.state} {row.notes.get('reason', '')}".strip()
    so_far = "".join(f"; best {best.value:.6g} ({trial_name(best.number)})" for best in ranked(search, rows)[:1])
    return f"{trial_name(row.number)}  {result}{so_far}; {len(rows)}{budget} ended"


def _places(logs: Path, division: Share) -> Iterator[_Place]:
    gpus = list(Machine.here().gpus) if division.gpus_per_run else []
    for number in range(division.at_once):
        mine = gpus[number * division.gpus_per_run : (number + 1) * division.gpus_per_run]
        chosen = {"CUDA_VISIBLE_DEVICES": ",".join(mine)} if mine else {}
        environment = {"OMP_NUM_THREADS": str(division.threads), "PYTHONUNBUFFERED": "1", **chosen}
        yield _Place(number, environment, logs / f"worker-{os.getpid()}-{number}.log")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].removeprefix("error: ") if lines else ""
