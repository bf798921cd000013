"""The testbed is a real SLURM: two nodes, accounting, GPUs, preemption, memory limits, and a controller that may die."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from slurm.testbed.cluster import MAX_ARRAY_SIZE, Cluster

pytestmark = [
    pytest.mark.system("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd"),
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),
]


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def submit(folder: Path, script: str, *options: str) -> str:
    return output("sbatch", "--parsable", f"--output={folder}/%j.out", *options, "--wrap", script).strip()


def wait_for_state(job: str, *wanted: str, limit_s: float = 60) -> str:
    until = time.monotonic() + limit_s
    state = ""
    while time.monotonic() < until:
        state = output("sacct", "--jobs", job, "--allocations", "--noheader", "--parsable2", "--format=State").split("\n")[0]
        if state.split(" ")[0] in wanted:
            return state
        time.sleep(0.3)
    raise AssertionError(f"job {job} is {state!r} after {limit_s} s, not {wanted}")


def test_a_job_spans_both_nodes_and_is_accounted(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(tmp_path, "srun --ntasks-per-node=1 printenv SLURMD_NODENAME", "--nodes=2")
    wait_for_state(job, "COMPLETED")
    assert sorted((tmp_path / f"{job}.out").read_text().split()) == ["node1", "node2"]


def test_declared_gpus_are_given_out_by_number(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(tmp_path, "echo $CUDA_VISIBLE_DEVICES", "--gres=gpu:2")
    wait_for_state(job, "COMPLETED")
    assert (tmp_path / f"{job}.out").read_text().strip() == "0,1"


def test_a_job_of_the_high_partition_preempts_and_requeues_another(cluster: Cluster, tmp_path: Path) -> None:
    victim = submit(tmp_path, "sleep 300", "--exclusive", "--nodes=2", "--requeue")
    wait_for_state(victim, "RUNNING")
    urgent = submit(tmp_path, "sleep 1", "--partition=high", "--exclusive", "--nodes=2")
    wait_for_state(urgent, "COMPLETED")
    wait_for_state(victim, "RUNNING")
    assert "Restarts=1" in output("scontrol", "show", "job", victim)
    output("scancel", victim)


def test_a_job_that_takes_more_memory_than_it_asked_for_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(tmp_path, "python3 -c 'import time; x = bytearray(400 << 20); time.sleep(30)'", "--mem=50M")
    wait_for_state(job, "FAILED")  # without cgroups SLURM has no OUT_OF_MEMORY state: the log says it
    assert "Exceeded job memory limit" in (tmp_path / f"{job}.out").read_text()


def test_an_array_index_beyond_the_limit_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    refused = subprocess.run(
        ["sbatch", f"--array=0-{MAX_ARRAY_SIZE}", "--wrap", "true"], capture_output=True, text=True, timeout=60
    )
    assert refused.returncode != 0
    assert "Invalid job array specification" in refused.stderr


def test_jobs_outlive_a_killed_controller(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(tmp_path, "sleep 20; echo survived")
    wait_for_state(job, "RUNNING")
    cluster.wait_until_saved(job)
    cluster.restart_controller()
    wait_for_state(job, "COMPLETED")
    assert (tmp_path / f"{job}.out").read_text() == "survived\n"
