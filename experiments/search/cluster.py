"""Workers of a search as one SLURM array, with a cap; submitted again until the budget is spent.

A worker that reaches the time limit puts itself back into the queue; a preempted one is put there by SLURM. Launching again, or
waiting, replaces the others: only as many are submitted as the queue lacks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from experiments.search.pool import News
from experiments.search.worker import STORAGE
from hicmae.errors import HicmaeError, UsageError
from slurm import arrays, scheduler
from slurm.arrays import Array
from slurm.scheduler import IN_QUEUE
from slurm.state import SETTLING_S

if TYPE_CHECKING:
    from experiments.search.study import Study
    from slurm.dispatch import Target

WORKERS = 4
LOOK_EVERY_S = 5.0
MAX_BARREN = 5  # submissions in a row without any trial finished in between
MODULE = "experiments.search.worker"


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


class Workers:
    """The workers of one study in the queue of a cluster."""

    def __init__(self, study: Study, runs_root: Path, words: Sequence[str], count: int | None, target: Target, console: Console):
        self.study, self.runs_root, self.console = study, runs_root, console
        self.words, self.target = words, target
        self.count = min(count or WORKERS, study.search.budget.trials or count or WORKERS)

    def submit(self) -> int:
        """Fill the queue up to the number of workers; returns how many were submitted."""
        from slurm import dispatch

        with arrays.launching(self.runs_root):
            missing = self.count - self.queued()
            if missing < 1:
                return 0
            name = self.study.search.name
            array = dispatch.submit_workers(self.runs_root, name, MODULE, self.words, missing, self.target)
        self.console.print(f"submitted {missing} workers as job {array.job_id}  {array.name}", highlight=False)
        return missing

    def queued(self) -> int:
        """Workers that wait or work. Raises HicmaeError when the scheduler does not answer."""
        folders = [path.parent.name for path in (self.runs_root / arrays.FOLDER).glob("workers-*/array.json")]
        recorded = [arrays.read(self.runs_root, name) for name in folders]
        mine = [array for array in recorded if array.resources.get("workers_of") == self.study.search.name]
        found = scheduler.ask({(array.name, index): array.created for array in mine for index in range(_count(array))})
        listed = {name for name, _ in found}
        settling = [a for a in mine if a.name not in listed and a.job_id and time.time() - a.created < SETTLING_S]
        return sum(map(_count, settling)) + sum(info.state in IN_QUEUE for info in found.values())

    def wait(self) -> None:
        """Submit again whenever the queue is empty, until the budget is spent. Raises HicmaeError when that leads nowhere."""
        news, barren = News(self.study, self.console), 0
        while not self.study.is_spent():
            barren = 0 if news.show() else barren
            if self.queued() == 0 and not self.study.is_spent():
                barren += 1
                if barren > MAX_BARREN:
                    raise HicmaeError(
                        f"workers end without finishing a trial; read their output in {self.runs_root}/{arrays.FOLDER}"
                    )
                self.submit()
            time.sleep(LOOK_EVERY_S)
        news.show()


def _count(array: Array) -> int:
    return int(array.resources["count"])
