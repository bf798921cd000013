"""Submitting to a real SLURM: what is asked of it, dependencies, limits, what is left out and what is told at the end.

The jobs execute `obedient_run.py` in place of `hicmae.run`, from a folder of code made for the test; SLURM, submitit, the job
scripts and the tasks are the real ones. Faults are in test_dispatch_faults.py, real training on SLURM in test_launch_slurm.py.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from slurm_jobs import (
    HERE,
    ODD,
    ON_SLURM,
    count,
    held,
    job,
    known_of,
    moments,
    queued,
    submitted,
    target,
    wait_done,
    wait_settled,
)

from experiments import cli_runs
from experiments.cluster import Watch
from experiments.cluster import launch as launch_on_slurm
from experiments.experiment import Run
from hicmae.errors import HicmaeError
from hicmae.record import RunRecord
from slurm import arrays, dispatch, profiles
from slurm.dispatch import Target
from slurm.testbed.cluster import MAX_ARRAY_SIZE

pytestmark = ON_SLURM
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


def script_of(array: arrays.Array) -> str:
    command = ["scontrol", "write", "batch_script", str(array.job_id), "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


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


def test_a_dependant_of_a_run_outside_the_scheduler_is_left_out_with_the_reason(root: Path, program: Path) -> None:
    first = job(root, 0)
    RunRecord(first.path).append_event("started", host="a-workstation", pid=1)
    second = job(root, 1, first)
    report = dispatch.submit(root, [first, second], target(program))
    assert report.arrays == ()
    assert "not in the scheduler" in report.left_out[second.run_id]


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
