"""The local executor: real processes, failures injected on purpose.

The executed program is a small one that keeps a run's record as `hicmae.run` does (lock, events, metrics, result) and misbehaves
as its `behaviour.json` says; real training is executed in tests/experiments/test_launch_real.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hicmae import presets
from hicmae.config import FinetuneConfig, InitialWeights, PretrainConfig, change, run_id
from hicmae.errors import UsageError
from hicmae.record import RunRecord
from slurm.local import Entry, Job, LocalExecutor, Options, last_line
from slurm.machine import Machine, Share, share

MACHINE = Machine(cores=2, memory_bytes=64 << 30)
PROGRAM = Path(__file__).with_name("obedient_run.py")


class Recorder:
    """A view that remembers what it was told."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []
        self.busiest = 0

    def changed(self, entry: Entry, board: Sequence[Entry]) -> None:
        self.changes.append((entry.job.run_id, entry.state))
        self.busiest = max(self.busiest, sum(other.state == "running" for other in board))

    def refresh(self, board: Sequence[Entry], division: Share) -> None: ...

    def say(self, line: str) -> None: ...


def command(path: Path, _processes: int = 1) -> list[str]:
    return [sys.executable, str(PROGRAM), str(path)]


def job(root: Path, seed: int = 0, depends_on: Sequence[Job] = (), **behaviour: Any) -> Job:
    """A planned run with the behaviour of its program."""
    config: PretrainConfig | FinetuneConfig = change(presets.pretrain("smoke", "synthetic"), {"seed": seed})
    if depends_on:
        config = change(presets.finetune("smoke", "synthetic", 4), {"seed": seed})
        config = change(config, {"initial": InitialWeights("run", depends_on[0].run_id)})
    record = RunRecord.create(root, config)
    record.append_event("planned")
    (record.path / "behaviour.json").write_text(json.dumps(behaviour))
    return Job(run_id(config), record.path, f"run {seed}", config.stage, tuple(other.run_id for other in depends_on))


def execute(jobs: Sequence[Job], machine: Machine = MACHINE, **options: Any) -> tuple[list[Entry], Recorder]:
    view = Recorder()
    executor = LocalExecutor(jobs, view, Options(command=command, **options), machine)
    return executor.execute(), view


def states(board: Sequence[Entry]) -> list[str]:
    return [entry.state for entry in board]


def events(job: Job) -> list[str]:
    return [event["event"] for event in RunRecord(job.path).events()]


def test_a_dependant_starts_after_what_it_needs_is_done(tmp_path: Path) -> None:
    first = job(tmp_path, 1)
    second = job(tmp_path, 2, [first])
    board, view = execute([second, first])
    assert states(board) == ["done", "done"]
    assert view.changes.index((first.run_id, "done")) < view.changes.index((second.run_id, "running"))


def test_no_more_runs_at_once_than_cores(tmp_path: Path) -> None:
    board, view = execute([job(tmp_path, seed, pause_s=0.2) for seed in range(5)])
    assert states(board) == ["done"] * 5
    assert view.busiest == 2


def test_max_parallel_one_runs_one_after_the_other(tmp_path: Path) -> None:
    _, view = execute([job(tmp_path, seed) for seed in range(3)], max_parallel=1)
    assert view.busiest == 1


def test_gpus_are_pinned_one_for_each_run_and_given_back(tmp_path: Path) -> None:
    machine = Machine(cores=8, memory_bytes=64 << 30, gpus=("3", "5"))
    jobs = [job(tmp_path, seed, pause_s=0.3) for seed in range(4)]
    board, view = execute(jobs, machine)
    assert view.busiest == 2
    seen = [json.loads((entry.job.path / "environment.json").read_text()) for entry in board]
    assert {values["CUDA_VISIBLE_DEVICES"] for values in seen} == {"3", "5"}
    assert {values["OMP_NUM_THREADS"] for values in seen} == {"4"}


def test_a_failed_run_is_named_with_its_reason_and_blocks_its_dependants(tmp_path: Path) -> None:
    first = job(tmp_path, 1, fail_at=2)
    second = job(tmp_path, 2, [first])
    other = job(tmp_path, 3)
    board, _ = execute([first, second, other])
    assert states(board) == ["failed", "blocked", "done"]
    assert board[0].reason == "the loss is nan at step 2"
    assert first.run_id in board[1].reason
    assert events(second) == ["planned", "blocked"]
    assert RunRecord(second.path).state() == "blocked"


def test_an_uncaught_error_is_a_failure_with_the_last_line_of_the_log(tmp_path: Path) -> None:
    broken = job(tmp_path, 1, crash="ValueError")
    board, _ = execute([broken])
    assert states(board) == ["failed"]
    assert board[0].reason == "ValueError: crashed on purpose"
    assert RunRecord(broken.path).state() == "failed"
    assert board[0].log == broken.path / "log" / "attempt-1.log"
    assert last_line(broken.path) == board[0].reason


def test_a_killed_run_is_tried_again_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    killed = job(tmp_path, 1, kill_at=3, steps=6)
    board, _ = execute([killed])
    assert states(board) == ["done"]
    assert board[0].attempts == 2
    assert sorted(path.name for path in (killed.path / "log").iterdir()) == ["attempt-1.log", "attempt-2.log"]
    steps = [line["step"] for line in RunRecord(killed.path).metrics()]
    assert steps == [1, 2, 3, 4, 5, 6]
    starts = [event["step"] for event in RunRecord(killed.path).events() if event["event"] == "started"]
    assert starts == [0, 2]


def test_a_run_that_is_killed_every_time_ends_after_the_limit(tmp_path: Path) -> None:
    killed = job(tmp_path, 1, kill_at=1, always=True)
    board, _ = execute([killed], max_attempts=3)
    assert states(board) == ["interrupted"]
    assert board[0].attempts == 3
    assert "SIGKILL" in board[0].reason


def test_a_done_run_is_not_started(tmp_path: Path) -> None:
    finished = job(tmp_path, 1)
    RunRecord(finished.path).finish({"status": "done"})
    board, _ = execute([finished])
    assert states(board) == ["done"]
    assert "started" not in events(finished)


def test_a_dependency_that_nobody_launches_blocks(tmp_path: Path) -> None:
    absent = job(tmp_path, 1)
    board, _ = execute([job(tmp_path, 2, [absent])])
    assert states(board) == ["blocked"]


def test_a_run_of_another_launcher_is_waited_for_not_started_twice(tmp_path: Path) -> None:
    shared = job(tmp_path, 1, pause_s=0.3, steps=4)
    other = subprocess.Popen(command(shared.path))
    while not RunRecord(shared.path).is_locked():
        time.sleep(0.01)
    board, view = execute([shared])
    other.wait()
    assert states(board) == ["done"]
    assert (shared.run_id, "elsewhere") in view.changes
    assert events(shared).count("started") == 1


def test_two_launchers_at_once_execute_every_run_once(tmp_path: Path) -> None:
    jobs = [job(tmp_path, seed, pause_s=0.02) for seed in range(6)]
    program = Path(__file__).with_name("launch_jobs.py")
    launchers = [
        subprocess.Popen([sys.executable, str(program), str(PROGRAM), *(str(one.path) for one in jobs)]) for _ in range(2)
    ]
    assert [launcher.wait() for launcher in launchers] == [0, 0]
    assert all(RunRecord(one.path).state() == "done" for one in jobs)
    assert all(events(one).count("finished") == 1 for one in jobs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_leaves_checkpoints_and_a_second_launch_finishes(tmp_path: Path, number: signal.Signals) -> None:
    jobs = [job(tmp_path, seed, pause_s=0.1, steps=20) for seed in range(3)]
    program = Path(__file__).with_name("launch_jobs.py")
    launcher = subprocess.Popen([sys.executable, str(program), str(PROGRAM), *(str(one.path) for one in jobs)])
    while not any((one.path / "metrics.jsonl").exists() for one in jobs):
        time.sleep(0.02)
    os.kill(launcher.pid, number)
    launcher.wait()
    assert not any(RunRecord(one.path).is_locked() for one in jobs)
    begun = [one for one in jobs if "started" in events(one)]
    assert begun
    assert all(events(one)[-1] == "preempted" for one in begun)
    board, _ = execute(jobs)
    assert states(board) == ["done"] * 3
    for one in begun:
        assert [line["step"] for line in RunRecord(one.path).metrics()] == list(range(1, 21))


def test_a_launcher_killed_outright_leaves_its_runs_alone_and_the_next_waits_for_them(tmp_path: Path) -> None:
    one = job(tmp_path, 1, pause_s=0.2, steps=5)
    program = Path(__file__).with_name("launch_jobs.py")
    launcher = subprocess.Popen([sys.executable, str(program), str(PROGRAM), str(one.path)])
    while not RunRecord(one.path).is_locked():
        time.sleep(0.02)
    launcher.kill()
    launcher.wait()
    board, view = execute([one])
    assert states(board) == ["done"]
    assert events(one).count("started") == 1
    assert (one.run_id, "elsewhere") in view.changes


def test_a_cancelled_run_is_not_tried_again(tmp_path: Path) -> None:
    one = job(tmp_path, 1, cancel_at=2, steps=5)
    board, _ = execute([one])
    assert states(board) == ["cancelled"]
    assert board[0].attempts == 1
    assert RunRecord(one.path).state() == "cancelled"


def test_memory_bounds_the_number_of_runs_but_never_to_none() -> None:
    machine = Machine(cores=16, memory_bytes=10 << 30)
    assert share(machine, 3 << 30).at_once == 3
    assert share(machine, 300 << 30).at_once == 1
    assert share(machine, 3 << 30, max_parallel=2).at_once == 2
    assert share(machine, 3 << 30).threads == 5


def test_impossible_bounds_are_refused() -> None:
    gpus = Machine(cores=4, memory_bytes=64 << 30, gpus=("0",))
    with pytest.raises(UsageError, match="shows 1 GPUs"):
        share(gpus, 1, gpus_per_run=2)
    with pytest.raises(UsageError, match="at least 1"):
        share(gpus, 1, max_parallel=0)
