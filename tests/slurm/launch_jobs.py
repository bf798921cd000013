"""A launcher as a process of its own, for tests that kill it: python launch_jobs.py PROGRAM RUN_DIR..."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from slurm.local import Job, LocalExecutor, Options
from slurm.machine import Machine
from slurm.view import PlainView

if __name__ == "__main__":
    program, *paths = sys.argv[1:]
    jobs = [Job(Path(path).name, Path(path), Path(path).name) for path in paths]
    options = Options(command=lambda path, _: [sys.executable, program, str(path)], grace_s=20.0)
    board = LocalExecutor(jobs, PlainView(Console()), options, Machine(cores=2, memory_bytes=64 << 30)).execute()
    sys.exit(0 if all(entry.state == "done" for entry in board) else 1)
