"""A worker of a search: asks for a trial, has it judged, tells; again and again, until the budget is spent.

    python -m experiments.search.worker NAME [--fold 1] --runs runs [--smoke] [--trials N] [--gpu-hours H]

Started by `hicmae search run`, any number at once, on one machine or many that see the folder. With several outer folds it takes
them in turn; workers of one SLURM array begin with different ones. Killed at any moment it loses
nothing: its trial is taken over. Asked to stop (SIGTERM, SIGINT, SIGUSR2) it lets its run write a checkpoint first.
Exit codes: 0 nothing left to begin, 75 asked to stop, 1 failed, 2 bad usage.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from experiments.available import Fingerprints
from experiments.experiment import is_file
from experiments.search import definition
from experiments.search.definition import Budget, Search
from experiments.study_file import FOLDER
from hicmae.errors import HicmaeError, UsageError
from hicmae.record import runs_root
from slurm import arrays
from slurm.arrays import Array

if TYPE_CHECKING:
    from experiments.search.judge import Verdict
    from experiments.search.study import OwnTrial, Study

STORAGE = "HICMAE_SEARCH_STORAGE"  # a database's URL; by the environment, so that no password stands in a list of processes
STOPPED = 75
MAX_FAILURES = 3  # in a row, after which a worker gives up: something is wrong beyond the trials


@dataclass(frozen=True)
class Request:
    """Which search, and where; empty values leave it as declared."""

    name: str
    runs_root: Path
    smoke: bool = False
    folds: tuple[int, ...] = ()
    trials: int | None = None
    gpu_hours: float | None = None

    @property
    def label(self) -> str:
        """For people."""
        return Path(self.name).stem + ("_smoke" if self.smoke else "")

    def arguments(self) -> list[str]:
        """The command line of a worker."""
        name = str(Path(self.name).absolute()) if is_file(self.name) else self.name
        words = [name, "--runs", str(self.runs_root.absolute())]
        options = [*(("--fold", fold) for fold in self.folds), ("--trials", self.trials), ("--gpu-hours", self.gpu_hours)]
        for option, value in options:
            words += [option, str(value)] if value is not None else []
        return [*words, *(["--smoke"] if self.smoke else [])]


def requested(request: Request) -> Search:
    """The search as declared, with the size, folds and budget that were asked for. Raises UsageError."""
    search = definition.find(request.name)
    search = search.at_smoke_size() if request.smoke else search
    if request.folds and search.function is not None:
        raise UsageError(f"{search.name}: searches over a function, which has no outer folds; leave the fold out")
    search = replace(search, folds=request.folds) if request.folds else search
    if request.trials is not None or request.gpu_hours is not None:
        search = replace(search, budget=Budget(request.trials, request.gpu_hours))
    return search


def folder_of(runs_root: Path, search: Search) -> Path:
    """Where the journal, the claims, the logs and the figures of one outer fold's search lie."""
    return runs_root / FOLDER / search.name


def opened(search: Search, runs_root: Path, prints: Fingerprints) -> Study:
    """The study of one outer fold's search, checked and made where it is new. Raises UsageError."""
    from experiments.search.study import Study

    search.check_space()
    return Study.open(search, folder_of(runs_root, search), os.environ.get(STORAGE), search.identity(prints))


def work(
    study: Study,
    judge: Callable[[OwnTrial], Verdict],
    stopping: Callable[[], bool] = lambda: False,
    after: Callable[[], object] = lambda: None,
) -> int:
    """Judge trials until nothing is left to begin, calling `after` each; how many were finished here.

    Raises Stopped when asked to stop, and HicmaeError after three failures in a row.
    """
    from experiments.search.judge import Stopped

    finished = failures = 0
    while (trial := study.claim()) is not None:
        try:
            verdict = judge(trial)
        except BaseException:
            trial.give_back()
            raise
        study.tell(trial, verdict.value, pruned=verdict.pruned, reason=verdict.reason)
        after()
        finished += 1
        failures = failures + 1 if verdict.value is None and not verdict.pruned else 0
        if failures == MAX_FAILURES:
            raise HicmaeError(
                f"{failures} trials in a row failed, the last one by: {verdict.reason}; mend it and run the search again"
            )
        if stopping():
            raise Stopped("asked to stop")
    return finished


def parser_of(program: str) -> argparse.ArgumentParser:
    """Reads what `Request.arguments` writes."""
    parser = argparse.ArgumentParser(prog=program, description="One worker of a search.")
    parser.add_argument("name", nargs="?", default="", help="a search's name or a Python file with search()")
    parser.add_argument("--fold", type=int, action="append", default=[], help="an outer fold; repeatable (default: all)")
    parser.add_argument("--runs", type=Path, default=runs_root(), help="folder of the run directories (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--gpu-hours", type=float)
    return parser


def request_of(options: argparse.Namespace) -> Request:
    return Request(options.name, options.runs, options.smoke, tuple(options.fold), options.trials, options.gpu_hours)


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of("python -m experiments.search.worker")
    parser.add_argument("--array", type=Path, help="as a task of this SLURM array: all other arguments are in its record")
    options = parser.parse_args(arguments)
    array = arrays.read(options.array.parent.parent, options.array.name) if options.array else None
    options = parser.parse_args(array.resources["arguments"]) if array else options
    try:
        return _work_as_process(request_of(options), array)
    except HicmaeError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def _work_as_process(request: Request, array: Array | None) -> int:
    from experiments.search.judge import Stopped

    stops: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stops.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, stop)
    prints = Fingerprints()
    turns = [_turn(part, request.runs_root, prints, lambda: bool(stops)) for part in requested(request).parts()]
    first = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")) % len(turns) if array else 0
    try:
        finished = _in_turn([*turns[first:], *turns[:first]])
    except Stopped:
        if signal.SIGUSR2 in stops and array is not None:
            _requeue(array)
        return STOPPED
    print(f"{finished} trials finished here; nothing left to begin", flush=True)
    return 0


def _in_turn(turns: Sequence[Callable[[], int]]) -> int:
    """Work at one search after the other, again and again until nothing is left in any; how many trials were finished."""
    total = 0
    while True:
        finished = sum(turn() for turn in turns)
        total += finished
        if not finished or len(turns) == 1:
            return total


def _turn(search: Search, runs_root: Path, prints: Fingerprints, stopping: Callable[[], bool]) -> Callable[[], int]:
    """Works at one search until nothing is left to begin in it, keeping its study file up to date."""
    from experiments.search import report
    from experiments.search.judge import FunctionJudge, RunJudge

    study = opened(search, runs_root, prints)
    record = partial(report.record, search, study, runs_root, prints)
    is_quick = search.function is not None  # its trials may end faster than they can be listed
    judge: Callable[[OwnTrial], Verdict] = (
        FunctionJudge(search.function) if search.function else RunJudge(search, study, runs_root, prints, stopping)
    )

    def turn() -> int:
        try:
            return work(study, judge, stopping, (lambda: None) if is_quick else record)
        finally:
            record()  # a stopped worker's trials too, and those of one that was killed before it could list its last

    return turn


def _requeue(array: Array) -> None:
    """Put this task of a SLURM array back into the queue: its time is up, the search goes on."""
    from slurm import scheduler

    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) < int(array.resources.get("max_requeues", 0)):
        scheduler.requeue(f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}")


if __name__ == "__main__":
    sys.exit(main())
