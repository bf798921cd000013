"""One task of an array: finds its run, executes it as a process, and puts itself back into the queue at the time limit.

    srun python -m slurm.task ARRAY_FOLDER         # written into the job script by slurm/dispatch.py

SLURM sends USR2 before the time limit (the run saves and the task requeues itself) and TERM when a job is cancelled or preempted
(the run saves if there is time; preempted jobs are requeued by SLURM). This is the only place that requeues.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from hicmae.record import RunRecord
from slurm import arrays, scheduler
from slurm.local import next_log, run_command

STOPPED = 75  # hicmae.run: stopped by a signal, state saved
LOCK_PATIENCE_S = 600.0  # with a process that SLURM lost sight of and that still executes the run


def main(folder: Path) -> int:
    """Execute the run of this task; returns its exit code."""
    array = arrays.read(folder.parent.parent, folder.name)
    index = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    path = folder.parent.parent / array.run_ids[index]
    if _superseded(path, array.name):
        print(f"{path}: was submitted again since, in another array; this task leaves it alone")
        return 0
    return Task(path, array).execute()


class Task:
    """The process of a run and the signals that pass through to it."""

    def __init__(self, path: Path, array: arrays.Array) -> None:
        self.path, self.array = path, array
        self.rank = int(os.environ.get("SLURM_PROCID", "0"))
        self.process: subprocess.Popen[bytes] | None = None
        self.time_is_up = self.is_stopped = False

    def execute(self) -> int:
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._pass_on)
        code = self._execute_run() if self._is_free() else STOPPED
        if code == -signal.SIGKILL and self.rank == 0:
            RunRecord(self.path).append_event("ended", cause="KILLED", reason="killed by SIGKILL (out of memory?)")
        if self.time_is_up and self.rank == 0 and code in (STOPPED, -signal.SIGUSR2):
            self._requeue()
        return code if code >= 0 else 128 - code

    def _is_free(self) -> bool:
        """Wait for another process that executes the run; False when a signal came first. A dead process holds nothing."""
        record, deadline = RunRecord(self.path), time.monotonic() + LOCK_PATIENCE_S
        while self.rank == 0 and not self.is_stopped and record.is_locked() and time.monotonic() < deadline:
            time.sleep(1.0)
        return not self.is_stopped

    def _execute_run(self) -> int:
        with self._log().open("ab") as log:
            # In a session of its own, so that a signal reaches it once: through this process.
            command = run_command(self.path)
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            return self.process.wait()

    def _log(self) -> Path:
        """log/attempt-N.log of the first process; others write beside it."""
        if self.rank == 0:
            return next_log(self.path)
        return self.path / "log" / f"rank-{self.rank}-job-{os.environ.get('SLURM_JOB_ID', '0')}.log"

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.is_stopped, self.time_is_up = True, self.time_is_up or number == signal.SIGUSR2
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)  # not to its group: processes that read data would die of it

    def _requeue(self) -> None:
        before = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if before >= int(self.array.resources.get("max_requeues", 0)):
            print(f"{self.path}: reached the time limit {before + 1} times; not requeued")
            return
        base, index = os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"]
        scheduler.requeue(f"{base}_{index}")


def _superseded(path: Path, array: str) -> bool:
    """Whether the run was submitted again after this array."""
    submitted = [event for event in RunRecord(path).events() if event.get("event") == "submitted" and "array" in event]
    return bool(submitted) and submitted[-1]["array"] != array


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
