"""Submitting to a real SLURM: dependencies, limits, and every fault that must end with each run done once.

The jobs execute `obedient_run.py` in place of `hicmae.run`, from a folder of code made for the test; SLURM, submitit, the job
scripts and the tasks are the real ones. Real training on SLURM is in test_launch_slurm.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments import cli_runs
from experiments.cluster import Watch
from experiments.cluster import launch as launch_on_slurm
from experiments.experiment import Run
from hicmae import presets
from hicmae.config import FinetuneConfig, InitialWeights, PretrainConfig, change, run_id
from hicmae.errors import HicmaeError
from hicmae.record import RunRecord
from slurm import arrays, code, dispatch, profiles, state
from slurm.dispatch import Report, Target
from slurm.local import Job
from slurm.profiles import Profile
from slurm.state import RunState, read_states
from slurm.testbed.cluster import MAX_ARRAY_SIZE, Cluster

pytestmark = [
    pytest.mark.system("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd"),
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.usefixtures("cluster"),
]
HERE = Path(__file__).parent
PROFILE = """
[lab]
partition = "normal"
account = "lab"
qos = "urgent"
constraint = "a100"
nodes = 2
gpus_per_node = 4
cpus_per_task = 1
memory_gb = 3
time_h = 1.5
signal_delay_s = 90
setup = ["module load cuda/12"]
srun_args = ["--container-image=/containers/hicmae.sqsh"]
environment = { TOKEN = "a b; $(touch hacked)" }
python = "python"

[lab.finetune]
nodes = 1
gpus_per_node = 1
"""
ODD = "a 'b' \"c\" $(touch hacked); `touch hacked` & %j #"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code that jobs are executed from: the project's, with the obedient program in place of hicmae.run."""
    kept = code.take(tmp_path_factory.mktemp("launch")).path
    shutil.copy(HERE / "obedient_run.py", kept / "hicmae" / "run.py")
    return kept


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A runs folder whose path is full of what a shell could stumble over."""
    folder = tmp_path / ODD.replace("%", "") / "runs"
    folder.mkdir(parents=True)
    return folder


def target(program: Path, **profile: Any) -> Target:
    made = Profile(**{"cpus_per_task": 1, "memory_gb": 0.3, "time_h": 0.2, "signal_delay_s": 30, **profile})
    return Target({"pretrain": made, "finetune": made}, program, "study", {"ODD": ODD})


def job(root: Path, seed: int, needs: Job | None = None, **behaviour: Any) -> Job:
    config: PretrainConfig | FinetuneConfig = change(presets.pretrain("smoke", "synthetic"), {"seed": seed})
    if needs is not None:
        config = change(presets.finetune("smoke", "synthetic", 4), {"seed": seed, "initial": InitialWeights("run", needs.run_id)})
    record = RunRecord.create(root, config)
    (record.path / "behaviour.json").write_text(json.dumps(behaviour))
    return Job(run_id(config), record.path.absolute(), str(seed), config.stage, (needs.run_id,) if needs else ())


def states(root: Path, jobs: Sequence[Job]) -> list[str]:
    return [found.state for found in read_states(root, [one.run_id for one in jobs]).values()]


def wait(root: Path, jobs: Sequence[Job], until: Callable[[RunState], bool], limit_s: float = 240) -> dict[str, RunState]:
    """Until every job's state fulfils a condition."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        found = read_states(root, [one.run_id for one in jobs])
        if all(until(one) for one in found.values()):
            return found
        if not any(one.is_active for one in found.values()):
            time.sleep(3)  # a last look: nothing is going on any more
            found = read_states(root, [one.run_id for one in jobs])
            assert all(until(one) for one in found.values()) or any(one.is_active for one in found.values()), found
        time.sleep(0.5)
    raise AssertionError(f"after {limit_s} s: {found}")


def wait_done(root: Path, jobs: Sequence[Job]) -> None:
    wait(root, jobs, lambda found: found.state == "done")


def wait_settled(root: Path, jobs: Sequence[Job]) -> dict[str, RunState]:
    return wait(root, jobs, lambda found: not found.is_active)


def submitted(report: Report) -> list[int]:
    return [len(array.run_ids) for array in report.arrays]


def count(one: Job, event: str) -> int:
    return sum(line["event"] == event for line in RunRecord(one.path).events())


def moments(one: Job, event: str) -> list[float]:
    return [line["time"] for line in RunRecord(one.path).events() if line["event"] == event]


def launcher(root: Path, program: Path, jobs: Sequence[Job], path: Path | None = None) -> subprocess.Popen[str]:
    """A launcher as a process of its own, that finds SLURM's commands in `path` first."""
    environment = {**os.environ, "PATH": f"{path or ''}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, str(HERE / "submit_jobs.py"), str(root), str(program), *(str(one.path) for one in jobs)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def fake(folder: Path, name: str, script: str) -> Path:
    """A program that stands before one of SLURM's; `$REAL` in it is SLURM's own."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/bash\nREAL={shutil.which(name)}\n{script}\n")
    path.chmod(0o755)
    return folder


def test_dependants_are_one_array_that_starts_when_what_it_needs_is_done(root: Path, program: Path) -> None:
    first = job(root, 0, pause_s=0.5)
    second = [job(root, seed, first) for seed in (1, 2, 3)]
    report = dispatch.submit(root, [first, *second], target(program))
    assert submitted(report) == [1, 3]
    wait_done(root, [first, *second])
    assert all(moments(one, "started")[0] > moments(first, "finished")[0] for one in second)
    assert all(count(one, "finished") == 1 for one in [first, *second])


def test_names_paths_and_variables_are_text_and_nothing_else(root: Path, program: Path) -> None:
    one = job(root, 0)
    dispatch.submit(root, [one], target(program))
    wait_done(root, [one])
    assert json.loads((one.path / "environment.json").read_text())["ODD"] == ODD
    assert not list(root.parents[2].rglob("hacked"))
    assert not (HERE / "hacked").exists()
    assert (one.path / "log" / "attempt-1.log").exists()


def test_every_line_of_a_profile_reaches_the_job(root: Path, program: Path) -> None:
    """From the user's file through submitit and sbatch to what SLURM holds of the job, and to its script as SLURM keeps it."""
    profiles.user_file().parent.mkdir(parents=True)
    profiles.user_file().write_text(PROFILE)
    made = profiles.find("lab")
    for words in ("qos urgent", "account lab", "user root account=lab"):
        subprocess.run(["sacctmgr", "--immediate", "add", *words.split()], check=True, capture_output=True)
    first = job(root, 0)
    jobs = [first, job(root, 1, first)]
    with held():
        report = dispatch.submit(root, jobs, Target(made, program, "study", {}, profile="lab"))
        facts, script = known_of(report.arrays[0]), script_of(report.arrays[0])
        other, other_script = known_of(report.arrays[1]), script_of(report.arrays[1])
        subprocess.run(["scancel", *(array.job_id or "" for array in report.arrays)], check=True)
    shown = {"Account": "lab", "QOS": "urgent", "Features": "a100", "Partition": "normal", "TimeLimit": "01:30:00"}
    assert {name: facts[name] for name in shown} == shown
    shown = {"NumNodes": "2-2", "TresPerNode": "gres/gpu:4", "CPUs/Task": "1", "MinMemoryNode": "3G", "Requeue": "1"}
    assert {name: facts[name].replace("gres:", "gres/") for name in shown} == shown
    lines = script.splitlines()
    setup = [lines.index("module load cuda/12"), lines.index("export TOKEN='a b; $(touch hacked)'")]
    (srun,) = (number for number, line in enumerate(lines) if line.startswith("srun "))
    assert max(setup) < srun
    assert "--container-image=/containers/hicmae.sqsh" in lines[srun] and " python " in lines[srun]
    assert "#SBATCH --signal=USR2@90" in lines and "#SBATCH --ntasks-per-node=4" in lines
    assert (other["TresPerNode"].replace("gres:", "gres/"), other["NumNodes"]) == ("gres/gpu:1", "1-1"), "the stage's own section"
    assert other["Dependency"].startswith(f"afterok:{report.arrays[0].job_id}")
    assert "#SBATCH --ntasks-per-node=1" in other_script.splitlines()


@contextmanager
def held() -> Iterator[None]:
    """Nothing starts meanwhile."""
    subprocess.run(["scontrol", "update", "PartitionName=normal", "State=DOWN"], check=True)
    try:
        yield
    finally:
        subprocess.run(["scontrol", "update", "PartitionName=normal", "State=UP"], check=True)


def known_of(array: arrays.Array) -> dict[str, str]:
    """What SLURM holds of the first task."""
    told = subprocess.run(["scontrol", "show", "job", f"{array.job_id}_0"], capture_output=True, text=True, check=True).stdout
    return dict(word.split("=", 1) for word in told.split() if "=" in word)


def script_of(array: arrays.Array) -> str:
    command = ["scontrol", "write", "batch_script", str(array.job_id), "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_folder_that_slurm_would_take_for_a_pattern_is_refused(tmp_path: Path, program: Path) -> None:
    one = job(tmp_path / "100%", 0)
    with pytest.raises(HicmaeError, match="'%' in its name"):
        dispatch.submit(tmp_path / "100%", [one], target(program))
    assert count(one, "submitted") == 0


def test_a_failed_run_blocks_its_dependants_and_says_why(root: Path, program: Path) -> None:
    first = job(root, 0, fail_at=2)
    second = job(root, 1, first)
    dispatch.submit(root, [first, second], target(program))
    found = wait_settled(root, [first, second])
    assert found[first.run_id].state == "failed"
    assert found[first.run_id].reason == "the loss is nan at step 2"
    assert found[second.run_id].state == "blocked"
    assert first.run_id in found[second.run_id].reason


def test_a_crash_is_told_with_the_last_line_of_its_log(root: Path, program: Path) -> None:
    one = job(root, 0, crash="yes")
    dispatch.submit(root, [one], target(program))
    found = wait_settled(root, [one])[one.run_id]
    assert (found.state, found.reason) == ("failed", "ValueError: crashed on purpose")


def test_many_runs_are_split_at_the_clusters_limit_and_capped_over_all_arrays(root: Path, program: Path) -> None:
    jobs = [job(root, seed, pause_s=0.05) for seed in range(MAX_ARRAY_SIZE + 9)]
    report = dispatch.submit(root, jobs, replace(target(program, memory_gb=0.1), max_parallel=3))
    assert submitted(report) == [MAX_ARRAY_SIZE, 9]
    again = dispatch.submit(root, jobs, target(program))
    assert again.arrays == ()
    subprocess.run(["scancel", *(array.job_id or "" for array in report.arrays)], check=True)
    limits = [
        (array.folder / f"{array.job_id}_submission.sh").read_text().split("%")[1].split("\n")[0] for array in report.arrays
    ]
    assert [int(limit) for limit in limits] == [2, 1]
    wait_settled(root, jobs)


def test_a_second_launch_of_what_is_queued_or_done_submits_nothing(root: Path, program: Path) -> None:
    jobs = [job(root, seed, pause_s=0.3) for seed in range(3)]
    dispatch.submit(root, jobs, target(program))
    assert dispatch.submit(root, jobs, target(program)).arrays == ()
    wait_done(root, jobs)
    assert dispatch.submit(root, jobs, target(program)).arrays == ()
    assert [count(one, "started") for one in jobs] == [1, 1, 1]


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
    dispatch.submit(root, [first, second], target(program))
    wait(root, [first], lambda _: count(first, "checkpoint") >= 1)
    time.sleep(8)  # the controller saves its state every few seconds
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


def test_a_dependant_of_a_run_outside_the_scheduler_is_left_out_with_the_reason(root: Path, program: Path) -> None:
    first = job(root, 0)
    RunRecord(first.path).append_event("started", host="a-workstation", pid=1)
    second = job(root, 1, first)
    report = dispatch.submit(root, [first, second], target(program))
    assert report.arrays == ()
    assert "not in the scheduler" in report.left_out[second.run_id]


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


def test_a_notification_waits_for_earlier_launches_too_and_tells_what_was_cut_off(
    root: Path, program: Path, tmp_path: Path
) -> None:
    earlier, later, killed = jobs = [job(root, 0, pause_s=1.0, steps=5), job(root, 1), job(root, 2, kill_at=1)]
    runs = [Run(RunRecord(one.path).config(), one.run_id, "study", ("v",), "synthetic", None, int(one.label)) for one in jobs]
    dispatch.submit(root, [earlier], target(program))
    watch = Watch("study", runs, notify=f"sh -c 'cat > {tmp_path}/told.json'")
    assert launch_on_slurm(root, runs[1:], target(program), watch, Console()) == 0
    deadline = time.monotonic() + 120
    while not (tmp_path / "told.json").exists() and time.monotonic() < deadline:
        time.sleep(0.3)
    time.sleep(0.2)
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["outcome"], told["runs"]) == ("unfinished", {"done": 2, "interrupted": 1})
    assert [count(one, "finished") for one in (earlier, later, killed)] == [1, 1, 0]


def test_cancelling_a_search_stops_its_workers_and_what_submits_them_again(root: Path, program: Path) -> None:
    studies = {name: [f"{name}_fold1", f"{name}_fold2"] for name in ("mine", "mine_too")}
    with held():
        mine, other = (
            dispatch.submit_workers(root, name, folds, "sleeper", [], 2, target(program)) for name, folds in studies.items()
        )
        dispatch.submit_after(root, "keeper", "sleeper", [], [str(mine.job_id)], target(program), keeper_of=studies["mine"])
        assert len(queued()) == 3
        cli_runs.cancel("mine", runs=root)
        assert queued() == {other.job_id}
        cli_runs.cancel("mine_too_fold1", runs=root)
        assert queued() == set()


def queued() -> set[str]:
    return set(subprocess.run(["squeue", "--noheader", "--format=%F"], capture_output=True, text=True, check=True).stdout.split())
