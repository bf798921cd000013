"""What the tests of submitting share: jobs of the obedient program, waiting for them, launchers, obstacles."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hicmae import presets
from hicmae.config import FinetuneConfig, InitialWeights, PretrainConfig, change, run_id
from hicmae.record import RunRecord
from slurm.arrays import Array
from slurm.dispatch import Report, Target
from slurm.local import Job
from slurm.profiles import Profile
from slurm.state import RunState, read_states

HERE = Path(__file__).parent
ON_SLURM = [  # of pytest: one SLURM for all the tests that submit such jobs
    pytest.mark.system("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd"),
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.usefixtures("cluster"),
]
ODD = "a 'b' \"c\" $(touch hacked); `touch hacked` & %j #"


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


def known_of(array: Array) -> dict[str, str]:
    """What SLURM holds of the first task."""
    told = subprocess.run(["scontrol", "show", "job", f"{array.job_id}_0"], capture_output=True, text=True, check=True).stdout
    return dict(word.split("=", 1) for word in told.split() if "=" in word)


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


@contextmanager
def held() -> Iterator[None]:
    """Nothing starts meanwhile."""
    subprocess.run(["scontrol", "update", "PartitionName=normal", "State=DOWN"], check=True)
    try:
        yield
    finally:
        subprocess.run(["scontrol", "update", "PartitionName=normal", "State=UP"], check=True)


def queued() -> set[str]:
    return set(subprocess.run(["squeue", "--noheader", "--format=%F"], capture_output=True, text=True, check=True).stdout.split())
