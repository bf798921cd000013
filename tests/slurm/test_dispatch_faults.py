"""Faults around a real SLURM, made on purpose: every one must end with each run done once.

Launchers and controllers are killed, commands time out, nodes are lost; jobs are those of test_dispatch.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from slurm_jobs import (
    ON_SLURM,
    count,
    fake,
    job,
    known_of,
    launcher,
    states,
    submitted,
    target,
    wait,
    wait_done,
    wait_settled,
)

from hicmae.errors import HicmaeError
from hicmae.record import RunRecord
from slurm import arrays, dispatch, state
from slurm.state import read_states
from slurm.testbed.cluster import Cluster

pytestmark = ON_SLURM


def test_two_launchers_at_once_submit_every_run_once(root: Path, program: Path) -> None:
    jobs = [job(root, seed) for seed in range(6)]
    launchers = [launcher(root, program, jobs) for _ in range(3)]
    for one in launchers:
        _, errors = one.communicate(timeout=120)
        assert one.returncode == 0, errors
    wait_done(root, jobs)
    assert [count(one, "submitted") for one in jobs] == [1] * 6
    assert [count(one, "finished") for one in jobs] == [1] * 6


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_launcher_killed_around_sbatch_neither_loses_nor_doubles(
    root: Path, program: Path, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL between the record of the intent and sbatch, or between sbatch and the record of the job's id."""
    jobs = [job(root, seed) for seed in range(2)]
    script = {"before": "kill -9 $PPID; sleep 1", "after": '"$REAL" "$@"; kill -9 $PPID'}[moment]
    killed = launcher(root, program, jobs, fake(tmp_path / "bin", "sbatch", script))
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert [count(one, "submitted") for one in jobs] == [1, 1]
    assert not list(root.glob("_slurm/*/job.json"))
    monkeypatch.setattr(state, "SETTLING_S", 0.0)
    assert submitted(dispatch.submit(root, jobs, target(program))) == ([2] if moment == "before" else [])
    wait_done(root, jobs)
    assert [count(one, "finished") for one in jobs] == [1, 1]


def test_sbatch_that_times_out_after_it_submitted_is_found_by_name(
    root: Path, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = 'echo "$@" >> "$(dirname "$0")/calls"; "$REAL" "$@" > /dev/null; '
    lost += "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1"
    folder = fake(tmp_path / "bin", "sbatch", lost)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    jobs = [job(root, seed) for seed in range(2)]
    report = dispatch.submit(root, jobs, target(program))
    assert report.arrays[0].job_id is not None
    assert len((folder / "calls").read_text().splitlines()) == 1
    wait_done(root, jobs)
    assert [count(one, "finished") for one in jobs] == [1, 1]


def test_sbatch_that_times_out_before_it_submitted_is_called_again(
    root: Path, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'if [ ! -e "$(dirname "$0")/once" ]; then touch "$(dirname "$0")/once"; echo "Socket timed out" >&2; exit 1; fi\n'
    folder = fake(tmp_path / "bin", "sbatch", script + 'exec "$REAL" "$@"')
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    one = job(root, 0)
    dispatch.submit(root, [one], target(program))
    wait_done(root, [one])
    assert count(one, "started") == 1


def test_a_refusal_is_told_and_leaves_the_runs_planned(root: Path, program: Path) -> None:
    one = job(root, 0)
    with pytest.raises(HicmaeError, match="refused") as refused:
        dispatch.submit(root, [one], target(program, partition="nowhere"))
    assert "partition" in str(refused.value)
    assert states(root, [one]) == ["planned"]


def test_a_scheduler_that_does_not_answer_makes_runs_unknown_never_dead(
    root: Path, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(root, 0, pause_s=1.0)
    dispatch.submit(root, [one], target(program))
    with monkeypatch.context() as deaf:
        folder = fake(tmp_path / "bin", "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
        deaf.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        found = read_states(root, [one.run_id])[one.run_id]
        assert found.is_active
        assert found.state in ("unknown", "running")
        assert dispatch.submit(root, [one], target(program)).arrays == ()
    wait_done(root, [one])
    assert count(one, "started") == 1


def test_a_preempted_run_is_requeued_and_goes_on_from_its_checkpoint(root: Path, program: Path) -> None:
    victim = job(root, 0, pause_s=0.5, steps=30)
    dispatch.submit(root, [victim], target(program))
    wait(root, [victim], lambda _: count(victim, "checkpoint") >= 1)
    urgent = subprocess.run(
        ["sbatch", "--parsable", "--partition=high", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap", "sleep 1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert urgent.stdout.strip()
    wait_done(root, [victim])
    steps = [line["step"] for line in RunRecord(victim.path).events() if line["event"] == "started"]
    assert len(steps) >= 2
    assert steps[-1] > 0
    assert count(victim, "finished") == 1


def test_at_the_time_limit_a_run_saves_requeues_itself_and_goes_on(root: Path, program: Path) -> None:
    """SLURM's shortest limit is a minute; it looks twice a minute, so USR2 comes between the 10th second and the 40th."""
    one = job(root, 0, pause_s=1.0, steps=45)
    dispatch.submit(root, [one], target(program, time_h=1 / 60, signal_delay_s=20))
    wait(root, [one], lambda found: found.state == "done", limit_s=400)
    assert count(one, "preempted") >= 1
    assert count(one, "submitted") == 1
    assert [line["step"] for line in RunRecord(one.path).metrics()] == list(range(1, 46))


def test_a_run_that_ran_out_of_memory_gets_more_the_next_time(root: Path, program: Path) -> None:
    one = job(root, 0, memory_mib=300, pause_s=1.5, steps=6)
    small = target(program, memory_gb=0.2, max_memory_gb=1.0)
    dispatch.submit(root, [one], small)
    found = wait_settled(root, [one])[one.run_id]
    assert (found.state, found.reason) == ("interrupted", "out of memory")
    report = dispatch.submit(root, [one], small)
    assert report.arrays[0].resources["memory_gb"] == 0.4
    assert known_of(report.arrays[0])["MinMemoryNode"] == "410M", "and SLURM was asked for it"
    found = wait_settled(root, [one])[one.run_id]
    if found.state != "done":  # 400 MB may not do either: the limit of 1 GB does
        dispatch.submit(root, [one], small)
        wait_done(root, [one])
    assert count(one, "finished") == 1


def test_a_lost_node_costs_an_attempt_not_the_run(root: Path, program: Path, cluster: Cluster) -> None:
    one = job(root, 0, pause_s=0.5, steps=40)
    dispatch.submit(root, [one], target(program))
    wait(root, [one], lambda _: count(one, "checkpoint") >= 1)
    node = subprocess.run(
        ["squeue", "--noheader", "--states=running", "--format=%N"], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    cluster.stop_node(int(node.removeprefix("node")))
    try:
        deadline = time.monotonic() + 240
        while states(root, [one]) != ["done"] and time.monotonic() < deadline:
            if states(root, [one]) == ["interrupted"]:
                dispatch.submit(root, [one], target(program))
            time.sleep(1)
    finally:
        cluster.start_node(int(node.removeprefix("node")))
    assert states(root, [one]) == ["done"]
    assert count(one, "finished") == 1
    assert count(one, "started") >= 2


def test_a_restarted_controller_changes_nothing(root: Path, program: Path, cluster: Cluster) -> None:
    first = job(root, 0, pause_s=0.5, steps=30)
    second = job(root, 1, first)
    report = dispatch.submit(root, [first, second], target(program))
    wait(root, [first], lambda _: count(first, "checkpoint") >= 1)
    cluster.wait_until_saved(str(report.arrays[0].job_id))
    cluster.kill_controller()
    assert set(states(root, [second])) <= {"unknown"}
    cluster.start_controller()
    wait_done(root, [first, second])
    assert [count(one, "finished") for one in (first, second)] == [1, 1]


def test_jobs_that_a_crashed_controller_forgot_are_submitted_again(
    root: Path, program: Path, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller comes back with what it had saved before they were submitted; the accounting holds them for waiting."""
    first = job(root, 0)
    second = [job(root, seed, first) for seed in (1, 2)]
    saved = cluster.state / "spool" / "ctld"
    wait(root, [first], lambda found: found.state == "new" or not found.is_active)
    shutil.copytree(saved, tmp_path / "saved")
    subprocess.run(["scontrol", "update", "PartitionName=normal", "State=DOWN"], check=True)
    dispatch.submit(root, [first, *second], target(program))
    cluster.kill_controller()
    shutil.rmtree(saved)
    shutil.copytree(tmp_path / "saved", saved)
    cluster.start_controller()
    subprocess.run(["scontrol", "update", "PartitionName=normal", "State=UP"], check=True)
    assert states(root, [first, *second]) == ["unknown"] * 3
    monkeypatch.setattr(state, "SETTLING_S", 0.0)
    assert states(root, [first, *second]) == ["planned", "blocked", "blocked"]
    assert submitted(dispatch.submit(root, [first, *second], target(program))) == [1, 2]
    wait_done(root, [first, *second])
    assert [count(one, "started") for one in [first, *second]] == [1, 1, 1]


def test_a_lock_file_that_a_dead_process_or_another_host_left_blocks_nothing(root: Path, program: Path) -> None:
    one, other = job(root, 0, kill_at=2), job(root, 1)
    (other.path / ".lock").write_text("4242\nanother-host\n")
    dispatch.submit(root, [one, other], target(program))
    found = wait_settled(root, [one, other])
    assert [found[each.run_id].state for each in (one, other)] == ["interrupted", "done"]
    assert (one.path / ".lock").exists()
    dispatch.submit(root, [one, other], target(program))
    wait_done(root, [one, other])
    assert [count(each, "started") for each in (one, other)] == [2, 1]


def test_a_process_that_slurm_lost_sight_of_is_waited_for(root: Path, program: Path) -> None:
    """It holds the run's lock; the new attempt begins when it is gone, and does not fail because of it."""
    one = job(root, 0)
    subprocess.run(["scontrol", "update", "PartitionName=normal", "State=DOWN"], check=True)
    (array,) = dispatch.submit(root, [one], target(program)).arrays
    with RunRecord(one.path).lock():
        subprocess.run(["scontrol", "update", "PartitionName=normal", "State=UP"], check=True)
        output = array.folder / f"{array.job_id}_0_0_log.out"
        deadline = time.monotonic() + 60
        while not output.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(3)
        assert count(one, "started") == 0
        assert states(root, [one]) == ["running"]
    wait_done(root, [one])
    assert [count(one, event) for event in ("started", "failed", "finished")] == [1, 0, 1]


def test_a_task_of_an_older_submission_leaves_the_run_alone(root: Path, program: Path) -> None:
    one = job(root, 0)
    older = arrays.create(root, "older", [one.run_id], {})
    arrays.create(root, "newer", [one.run_id], {})
    environment: Mapping[str, str] = {**os.environ, "SLURM_ARRAY_TASK_ID": "0"}
    ended = subprocess.run(
        [sys.executable, "-m", "slurm.task", str(older.folder)], cwd=program, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "submitted again" in ended.stdout
    assert count(one, "started") == 0
