"""A launcher as a process of its own, for tests that kill it: python submit_jobs.py RUNS_ROOT CODE RUN_DIR..."""

from __future__ import annotations

import sys
from pathlib import Path

from slurm import dispatch
from slurm.dispatch import Target
from slurm.local import Job
from slurm.profiles import Profile

if __name__ == "__main__":
    root, program, *paths = map(Path, sys.argv[1:])
    profile = Profile(cpus_per_task=1, memory_gb=0.3, time_h=0.2)
    jobs = [Job(path.name, path, path.name, "pretrain") for path in paths]
    dispatch.submit(root, jobs, Target({"pretrain": profile, "finetune": profile}, program, "study", {}))
