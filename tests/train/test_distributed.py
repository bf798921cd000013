"""Who a process is, from the environment of torchrun or srun, and the exchanges between real processes."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import torch
from forge import forge

from hicmae.train import distributed

SLURM = {
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
    "SLURM_JOB_ID": "4711",
}


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*SLURM, "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_without_a_launcher_there_is_one_process(clean: pytest.MonkeyPatch) -> None:
    assert (distributed.rank(), distributed.processes()) == (0, 1)


def test_an_srun_step_of_several_tasks_says_what_torchrun_would(clean: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        clean.setenv(name, value)
    assert (distributed.rank(), distributed.processes()) == (1, 2)
    told = {name: os.environ[name] for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    assert told == {"LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "19711"}


def test_a_launcher_wins_over_slurm(clean: pytest.MonkeyPatch) -> None:
    for name, value in {**SLURM, "RANK": "0", "WORLD_SIZE": "4"}.items():
        clean.setenv(name, value)
    assert (distributed.rank(), distributed.processes()) == (0, 4)


def test_a_job_of_one_task_is_one_process(clean: pytest.MonkeyPatch) -> None:
    for name, value in {**SLURM, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}.items():
        clean.setenv(name, value)
    assert (distributed.rank(), distributed.processes()) == (0, 1)


def exchange(arguments: list[str]) -> None:
    """What the processes of the tests below do."""
    world = distributed.start()
    summed = world.sum(torch.tensor([1.0, 10.0 * world.rank]))
    seen = {
        "rank": world.rank,
        "sum": summed.tolist(),
        "all": world.gather({"of": world.rank}),
        "shared": world.share([world.rank, "x"]),
    }
    (Path(arguments[0]) / f"{world.rank}.json").write_text(json.dumps(seen))


def job_with_a_free_port() -> int:
    """A job's port follows from its id: 15000 + id % 20000."""
    for job in range(os.getpid() % 20000, 40000):
        with socket.socket() as place:
            if place.connect_ex(("127.0.0.1", 15000 + job % 20000)) != 0:
                return job
    raise AssertionError("no free port")


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_processes_add_gather_and_share(tmp_path: Path, launcher: str) -> None:
    call, log, server = "test_distributed:exchange", tmp_path / "log", forge()
    if launcher == "torchrun":
        processes = server.start_several(2, call, [str(tmp_path)], log)
    else:
        job = {**SLURM, "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", "SLURM_JOB_ID": str(job_with_a_free_port())}
        tasks = [{**job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
        processes = [server.start(call, [str(tmp_path)], log, **task) for task in tasks]
    assert [process.wait() for process in processes] == [0, 0], log.read_text()
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [one["sum"] for one in seen] == [[2.0, 10.0], [2.0, 10.0]]
    assert seen[0]["all"] == [{"of": 0}, {"of": 1}] and seen[1]["all"] == []
    assert [one["shared"] for one in seen] == [[0, "x"], [0, "x"]]


def test_one_process_exchanges_with_itself() -> None:
    world = distributed.World(0, 1, torch.device("cpu"))
    assert world.is_main and world.gather(3) == [3] and world.share("x") == "x"
    assert world.sum(torch.ones(2)).tolist() == [1, 1]
