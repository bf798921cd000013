"""A real SLURM for the tests of this folder, started once per test process and stopped at its end."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

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
