"""The processes of a run: who this one is, and the few exchanges between them.

One process needs no launcher, no port and no environment. Several are found in the environment that torchrun sets (RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), or in that of an `srun` step with one task per GPU.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

_SLURM_PORTS = 15000, 20000  # first port, number of ports: a job's port follows from its id, so that all tasks agree


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the record."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The element-wise sum over all processes, on each of them."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """What every process holds, in the order of ranks, on the main process; an empty list on the others."""
        if self.size == 1:
            return [value]
        everybody: list[Any] = [None] * self.size
        dist.all_gather_object(everybody, value)
        return everybody if self.is_main else []

    def share(self, value: Any) -> Any:
        """The main process's value, on each of them."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]


def start() -> World:
    """Join the run's processes, once per process; leaving is registered for the end of the process."""
    _read_slurm()
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _join("nccl" if cuda else "gloo", device)
        atexit.register(_leave)
    return World(dist.get_rank(), dist.get_world_size(), device)


def processes() -> int:
    """How many processes the environment announces."""
    _read_slurm()
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's rank as the environment announces it."""
    _read_slurm()
    return int(os.environ.get("RANK", "0"))


def _join(backend: str, device: torch.device) -> None:
    if processes() == 1:
        # A store in memory: nothing listens on a port, so any number of runs can start on a machine at once.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    else:
        bound = device if device.type == "cuda" else None
        dist.init_process_group(backend, timeout=timedelta(minutes=30), device_id=bound)


def _leave() -> None:
    """A ZeRO-3 process that ends without this aborts."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _read_slurm() -> None:
    """Inside an srun step of several tasks, and unless a launcher has said otherwise, say what torchrun would have said."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in os.environ or tasks == "1" or "SLURM_PROCID" not in os.environ:
        return
    first, count = _SLURM_PORTS
    address = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    port = first + int(os.environ.get("SLURM_JOB_ID", "0")) % count
    told = {"RANK": os.environ["SLURM_PROCID"], "WORLD_SIZE": tasks, "LOCAL_RANK": os.environ.get("SLURM_LOCALID", "0")}
    for name, value in {**told, "MASTER_ADDR": address, "MASTER_PORT": str(port)}.items():
        os.environ.setdefault(name, value)
