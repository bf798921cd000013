"""Judges a trial: by its runs on inner splits, or by a function.

A trial's runs are ordinary ones in the runs folder: a recorded one is read, one that another process executes is waited for, the
rest is executed as `python -m hicmae.run RUN_DIR`. While the fine-tuning of the first split runs, its validation metric goes to
the pruner after every epoch; a pruned run is asked to stop, keeps its checkpoint and can be promoted.

Further inner splits are run while the mean over the splits so far is in the best third of all trials judged on as many splits;
with Optuna's WilcoxonPruner that test decides instead, and epochs are left to run.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.experiment import Run
from experiments.search import space as spaces
from experiments.search.definition import INNER, Function, Search
from experiments.search.study import OwnTrial, Study
from hicmae.errors import ConfigError, HicmaeError, RecordError
from hicmae.record import RunRecord
from slurm.local import GRACE_S, MAX_ATTEMPTS, next_log, run_command, verdict
from slurm.machine import visible_gpus

POLL_S = 0.2
KEPT_SHARE = 3  # one trial in so many goes on to the next inner split
DIVERGED = "DivergedError"  # `error` of the event by which a run says that its loss was not finite


class Stopped(HicmaeError):
    """The worker was asked to stop; the trial goes on where another worker, or a later one, takes it over."""


@dataclass(frozen=True)
class Verdict:
    """How a trial ended: with a value, pruned, or failed for a reason."""

    value: float | None = None
    pruned: bool = False
    reason: str = ""


class FunctionJudge:
    """Judges by a function of the parameters."""

    def __init__(self, function: Function) -> None:
        self.function = function

    def __call__(self, trial: OwnTrial) -> Verdict:
        began = time.monotonic()
        try:
            value = float(self.function(trial.params))
        except Exception as error:
            return Verdict(reason=f"{type(error).__name__}: {error}")
        finally:
            trial.note(hours=(time.monotonic() - began) / 3600)
        return Verdict(value) if math.isfinite(value) else Verdict(reason=f"the function returned {value}")


class RunJudge:
    """Judges by runs under `runs_root`; `stopping` is looked at while they go on."""

    def __init__(
        self,
        search: Search,
        study: Study,
        runs_root: Path,
        fingerprint: Callable[[str], str],
        stopping: Callable[[], bool] = lambda: False,
        command: Callable[[Path], list[str]] = run_command,
    ) -> None:
        self.search, self.study, self.runs_root = search, study, runs_root
        self.fingerprint, self.stopping, self.command = fingerprint, stopping, command
        self.devices = max(1, len(visible_gpus()))
        self.by_splits = search.pruner == "WilcoxonPruner"

    def __call__(self, trial: OwnTrial) -> Verdict:
        """Raises Stopped; failures of runs, values that cannot run and damaged records are the trial's."""
        delta = spaces.delta(self.search.space, trial.params)
        values: list[float] = []
        try:
            runs = self.search.trial_runs(trial.number, delta, self.search.splits, self.fingerprint)
            for split in range(self.search.splits):
                value = self._split(trial, runs, split)
                if value is None:
                    return Verdict(pruned=True)
                values.append(value)
                trial.note(splits=len(values), values=list(values))
                if not self._is_worth_more(trial, values):
                    break
        except _RunFailedError as failure:
            return Verdict(pruned=failure.diverged, reason=str(failure))
        except (ConfigError, RecordError) as error:  # the corners of the space were checked, not every point inside
            return Verdict(reason=str(error))
        return Verdict(sum(values) / len(values))

    def _split(self, trial: OwnTrial, runs: list[Run], split: int) -> float | None:
        """The objective on one inner split; None when the trial was pruned."""
        last = next(run for run in runs if run.stage == "finetune" and run.seed == split)
        needed = [run for run in runs if run.run_id in last.depends_on]
        trial.note(runs=list(dict.fromkeys([*trial.notes.get("runs", []), *(run.run_id for run in (*needed, last))])))
        for run in needed:
            self._execute(trial, run, lambda record: False)
        watch = self._watch(trial) if split == 0 and not self.by_splits else lambda record: False
        if not self._execute(trial, last, watch):
            return None
        record = RunRecord(self.runs_root / last.run_id)
        watch(record)  # for the trials to come: its last epochs, or all of a run that was recorded before
        values = (record.result() or {}).get("metrics", {}).get(INNER, {})
        if not math.isfinite(values.get(self.search.metric, math.nan)):
            raise _RunFailedError(f"run {record.id} has no {self.search.metric} on its validation part")
        return float(values[self.search.metric])

    def _is_worth_more(self, trial: OwnTrial, values: list[float]) -> bool:
        """Whether a further inner split is worth its cost."""
        if self.by_splits:
            return not trial.report(values[-1], step=len(values) - 1)
        if trial.notes.get("promoted") is not None:
            return True
        count, sign = len(values), 1 if self.search.maximizes else -1
        judged = [row.notes["values"][:count] for row in self.study.rows() if len(row.notes.get("values", ())) >= count]
        better = sum(sign * sum(other) > sign * sum(values) for other in judged)
        return better < math.ceil(len(judged) / KEPT_SHARE)

    def _watch(self, trial: OwnTrial) -> Callable[[RunRecord], bool]:
        """Reports each new epoch of a run; says whether the trial is to be pruned."""
        looked_at: set[int] = set()
        seen_bytes = 0

        def prune(record: RunRecord) -> bool:
            nonlocal seen_bytes
            path = record.path / "metrics.jsonl"
            seen_bytes, before = path.stat().st_size if path.exists() else 0, seen_bytes
            poor = False
            for point in record.metrics() if seen_bytes > before else ():
                epoch, value = round(point.get("epoch", 0)), point.get("values", {}).get(self.search.metric)
                if point["split"] != "validation" or value is None or epoch in looked_at:
                    continue
                looked_at.add(epoch)
                poor = trial.report(float(value), epoch) or poor
            return poor

        return prune

    def _execute(self, trial: OwnTrial, run: Run, prune: Callable[[RunRecord], bool]) -> bool:
        """Bring a run to its end; False when it was pruned instead. Raises _RunFailedError and Stopped."""
        record = RunRecord.create(self.runs_root, run.config)
        if record.state() == "failed" and _diverged(record):
            raise _RunFailedError(f"run {record.id} had diverged already", diverged=True)
        attempts = 0
        while record.result() is None:
            if self.stopping():
                raise Stopped("asked to stop")
            if record.is_locked():
                time.sleep(POLL_S)  # another process executes it
                continue
            if not attempts:
                record.append_event("planned", experiment=run.experiment, variants=list(run.variants))
            attempts += 1
            began = time.time()
            code, pruned = self._attempt(trial, record, prune)
            state, reason = verdict(record, code, began)
            if pruned and state != "done":
                return False
            if self.stopping() and state == "interrupted":
                raise Stopped("asked to stop")
            said = record.state() in ("failed", "cancelled")  # else it was killed, or lost the race for the run's lock
            if said or (state in ("failed", "interrupted") and attempts == MAX_ATTEMPTS):
                raise _RunFailedError(f"run {record.id}: {reason}", _diverged(record))
        return True

    def _attempt(self, trial: OwnTrial, record: RunRecord, prune: Callable[[RunRecord], bool]) -> tuple[int, bool]:
        """Execute a run in a process of its own: its exit code, and whether it was stopped because it is not worth going on."""
        spent, began = float(trial.notes.get("hours", 0.0)), time.monotonic()
        with next_log(record.path).open("wb") as log:
            process = subprocess.Popen(
                self.command(record.path), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        pruned = asked = False
        try:
            while process.poll() is None:
                pruned = pruned or prune(record)
                if (pruned or self.stopping()) and not asked:
                    process.send_signal(signal.SIGTERM)  # not to its group: processes that read data would die of it
                    asked, deadline = True, time.monotonic() + GRACE_S
                elif asked and time.monotonic() > deadline:
                    os.killpg(process.pid, signal.SIGKILL)
                time.sleep(POLL_S)
        finally:
            trial.note(hours=spent + self.devices * (time.monotonic() - began) / 3600)
        return process.returncode, pruned


class _RunFailedError(HicmaeError):
    """A run of a trial that cannot be brought to its end."""

    def __init__(self, reason: str, diverged: bool = False) -> None:
        super().__init__(reason)
        self.diverged = diverged


def _diverged(record: RunRecord) -> bool:
    failed = [event for event in record.events() if event.get("event") == "failed"]
    return bool(failed) and failed[-1].get("error") == DIVERGED
