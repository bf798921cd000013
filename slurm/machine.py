"""What this machine offers to runs: cores, memory and GPUs, found without importing torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

import psutil

from hicmae.errors import UsageError

MEMORY_SHARE = 0.9  # of the free memory that runs may plan with


@dataclass(frozen=True)
class Machine:
    """Cores and GPUs that this process may use, and the memory that is free now."""

    cores: int
    memory_bytes: int
    gpus: tuple[str, ...] = ()  # as CUDA_VISIBLE_DEVICES names them

    @classmethod
    def here(cls) -> Machine:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cls(cores=cores, memory_bytes=psutil.virtual_memory().available, gpus=visible_gpus())


@dataclass(frozen=True)
class Share:
    """How the machine is divided: so many runs at once, each with so many threads and GPUs."""

    at_once: int
    threads: int
    gpus_per_run: int


def visible_gpus() -> tuple[str, ...]:
    """CUDA_VISIBLE_DEVICES where it is set, else what nvidia-smi lists."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1"))
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return tuple(listed.stdout.split()) if listed.returncode == 0 else ()


def check_cap(max_parallel: int | None) -> None:
    """Raise UsageError for a cap that lets nothing run."""
    if max_parallel is not None and max_parallel < 1:
        raise UsageError(f"--max-parallel {max_parallel}: must be at least 1")


def share(machine: Machine, memory_per_run_bytes: int, max_parallel: int | None = None, gpus_per_run: int = 1) -> Share:
    """Divide a machine: one GPU a run where there are any, else one core; never more runs than memory holds, never none.

    Raises UsageError when a single run asks for more GPUs than there are.
    """
    check_cap(max_parallel)
    if not machine.gpus:
        at_once, gpus_per_run = machine.cores, 0
    elif gpus_per_run > len(machine.gpus) or gpus_per_run < 1:
        raise UsageError(f"--gpus-per-run {gpus_per_run}: this machine shows {len(machine.gpus)} GPUs")
    else:
        at_once = len(machine.gpus) // gpus_per_run
    fitting = int(MEMORY_SHARE * machine.memory_bytes / max(memory_per_run_bytes, 1))
    at_once = max(1, min(at_once, fitting, max_parallel or at_once))
    return Share(at_once, threads=max(1, machine.cores // at_once), gpus_per_run=gpus_per_run)
