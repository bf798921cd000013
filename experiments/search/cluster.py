"""Workers of a search as one SLURM array with one cap, kept going by SLURM itself until all budgets are spent.

The workers of an array take the outer folds in turn. One that reaches the time limit puts itself back into the queue, a preempted
one is put there by SLURM. What else ends workers (no memory, a node lost) is mended by the keeper: a small job that waits in the
queue for the array's end and then, while a budget is left, submits workers and the next keeper. So the launcher may go at once.
The keeper gives up after MAX_BARREN submissions in a row that finished no trial, and when people cancelled the workers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from experiments.search.pool import News
from experiments.search.worker import STORAGE, Request
from hicmae.errors import HicmaeError, UsageError
from slurm import arrays, scheduler
from slurm.arrays import Array
from slurm.scheduler import IN_QUEUE, JobInfo
from slurm.state import SETTLING_S

if TYPE_CHECKING:
    from experiments.search.study import Study
    from slurm.dispatch import Target

WORKERS = 4
LOOK_EVERY_S = 5.0
MAX_BARREN = 3  # submissions in a row without a trial done or pruned in between
WORKER, KEEPER = "experiments.search.worker", "experiments.search.keeper"
FRUITFUL = ("done", "pruned")


def check(target: Target) -> None:
    """Raise UsageError for what a worker cannot use."""
    profile = target.profiles["finetune"]
    if profile.nodes > 1 or profile.tasks > 1:
        raise UsageError(
            f"a search's worker is one process, the profile asks for {profile.nodes} nodes with {profile.tasks}: "
            "set nodes = 1 and gpus_per_node = 1 in its [NAME.finetune] (see slurm/profiles.toml)"
        )
    if os.environ.get(STORAGE, "").startswith("sqlite"):
        raise UsageError(f"{STORAGE}: SQLite serves one machine alone; leave it unset for the journal, or name a PostgreSQL")


@dataclass(frozen=True)
class Past:
    """What a keeper knows of the submissions before it."""

    fruits: int = 0  # trials done or pruned when the workers were submitted
    barren: int = 0  # submissions in a row that brought none


class Queue:
    """The workers and keepers of some studies in the scheduler's queue. Raises HicmaeError when it does not answer."""

    def __init__(self, runs_root: Path, studies: Sequence[str]) -> None:
        recorded = [arrays.read(runs_root, path.parent.name) for path in (runs_root / arrays.FOLDER).glob("*/array.json")]
        self.workers = [array for array in recorded if set(studies) <= set(array.resources.get("workers_of", ()))]
        self.keepers = [array for array in recorded if set(studies) <= set(array.resources.get("keeper_of", ()))]
        both = [*self.workers, *self.keepers]
        self._found = scheduler.ask({(array.name, index): array.created for array in both for index in range(_count(array))})

    def alive(self, array: Array) -> int:
        """How many tasks of an array wait or work."""
        found = self._of(array)
        if not found and array.job_id and time.time() - array.created < SETTLING_S:
            return _count(array)
        return sum(info.state in IN_QUEUE for info in found)

    @property
    def at_work(self) -> int:
        """Workers that wait or work."""
        return sum(map(self.alive, self.workers))

    def has_keeper(self, newer_than: float = 0.0) -> bool:
        return any(self.alive(array) for array in self.keepers if array.created > newer_than)

    def was_cancelled(self) -> bool:
        """Whether people cancelled the workers submitted last, all that had not come to their own end."""
        newest = max(self.workers, key=lambda array: array.created, default=None)
        states = {info.state for info in self._of(newest)} if newest else set()
        return "CANCELLED" in states and states <= {"CANCELLED", "COMPLETED"}

    def _of(self, array: Array) -> list[JobInfo]:
        return [info for (name, _), info in self._found.items() if name == array.name]


class Workers:
    """The workers of the outer folds' searches; `request` is what each is asked to do, by the file kept at launch."""

    def __init__(
        self, studies: Sequence[Study], runs_root: Path, request: Request, count: int | None, target: Target, say: Console
    ):
        self.studies, self.runs_root, self.request = studies, runs_root, request
        self.target, self.console = target, say
        self.names = [study.search.name for study in studies]
        trials = sum(study.search.budget.trials or 0 for study in studies)
        cap = target.profiles["finetune"].max_parallel
        self.count = min(number for number in (count or cap or WORKERS, trials, cap) if number)

    def submit(self, past: Past | None = None) -> int:
        """Fill the queue up to the number of workers, with a keeper behind them; returns how many workers were submitted."""
        with arrays.launching(self.runs_root):
            return self.fill(Queue(self.runs_root, self.names), past or Past(self.fruits()))

    def fill(self, queue: Queue, past: Past, newer_than: float = 0.0) -> int:
        """The same, under the lock of launchers; a keeper that was not submitted after `newer_than` does not count."""
        from slurm import dispatch

        missing, name = self.count - queue.at_work, self.request.label
        after = [array for array in queue.workers if queue.alive(array)]
        if missing > 0:
            words = self.request.arguments()
            array = dispatch.submit_workers(self.runs_root, name, self.names, WORKER, words, missing, self.target)
            after.append(array)
            self.console.print(f"submitted {missing} workers as job {array.job_id}  {array.name}", highlight=False)
        if missing > 0 or not queue.has_keeper(newer_than):
            job_ids = [array.job_id for array in after if array.job_id]
            words = [*("--profile", self.target.profile), *("--workers", str(self.count))]
            words += [*("--fruits", str(past.fruits)), *("--barren", str(past.barren)), *self.request.arguments()]
            dispatch.submit_after(self.runs_root, f"keeper-{name}", KEEPER, words, job_ids, self.target, keeper_of=self.names)
        return max(0, missing)

    def fruits(self) -> int:
        """Trials that are done or pruned."""
        return sum(row.state in FRUITFUL for study in self.studies for row in study.rows())

    def wait(self) -> None:
        """Tell how trials end until all budgets are spent. Raises HicmaeError when nothing is in the queue any more."""
        news = [News(study, self.console) for study in self.studies]
        while True:
            for each in news:
                each.show()
            if all(study.is_spent() for study in self.studies):
                return
            queue = Queue(self.runs_root, self.names)
            if not queue.at_work and not queue.has_keeper() and not all(study.is_spent() for study in self.studies):
                raise HicmaeError(
                    f"the workers have ended before the budget is spent; read their output in {self.runs_root}/{arrays.FOLDER}"
                )
            time.sleep(LOOK_EVERY_S)


def _count(array: Array) -> int:
    return int(array.resources["count"])
