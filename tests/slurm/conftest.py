"""A real SLURM for the tests of this folder, started once per test process and stopped at its end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_jobs import HERE, ODD

from slurm import code
from slurm.testbed.cluster import Cluster


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("testbed"))
    cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture
def cluster(running_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """SLURM's commands reach the testbed in a test that asks for this fixture; the next one finds no job of it."""
    if os.geteuid() != 0:
        pytest.skip("the SLURM testbed needs root")
    for name, value in running_cluster.environment().items():
        monkeypatch.setenv(name, value)
    yield running_cluster
    running_cluster.clear()


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
