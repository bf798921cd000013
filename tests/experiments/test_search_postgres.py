"""Trials in a real PostgreSQL server, for groups that have one: an exact budget with many workers on one database."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_search_workers import calls, declare, trials, worker

from experiments.search.worker import STORAGE

pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
pytestmark = [pytest.mark.system("initdb", "postgres"), pytest.mark.slow]


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database on loopback, in a folder of its own; PostgreSQL refuses to run as root."""
    folder = tmp_path_factory.mktemp("postgres") / "data"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    become = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder.mkdir()
    if become:
        for path in (folder, *folder.parents):
            if path.stat().st_uid == 0 and path != Path("/"):
                path.chmod(path.stat().st_mode | 0o011)
        shutil.chown(folder, "postgres")
    initdb, postgres = (shutil.which(name) or name for name in ("initdb", "postgres"))
    subprocess.run([*become, initdb, "-D", str(folder), "-U", "hicmae", "--auth=trust", "-N"], check=True, capture_output=True)
    options = ["-D", str(folder), "-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"]
    process = subprocess.Popen([*become, postgres, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for(port)
    yield f"postgresql://hicmae@127.0.0.1:{port}/postgres"
    process.terminate()
    process.wait(timeout=30)


def _wait_for(port: int) -> None:
    for _ in range(600):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("PostgreSQL does not listen")


def test_eight_workers_on_a_database_end_with_exactly_the_budget(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    for _ in range(100):  # it listens before it lets anybody in
        try:
            psycopg.connect(server).close()
            break
        except psycopg.OperationalError:
            time.sleep(0.2)
    monkeypatch.setenv(STORAGE, server)
    path, runs = declare(tmp_path, 100), tmp_path / "runs"
    workers = [subprocess.Popen(worker(path, runs), stdout=sys.stderr) for _ in range(8)]
    assert [process.wait() for process in workers] == [0] * 8
    found = trials(path, runs)
    assert [trial["number"] for trial in found] == list(range(100)) and {trial["state"] for trial in found} == {"done"}
    assert len(calls(tmp_path)) == 200, "no trial was worked twice"
    assert not (runs / "_studies" / "square" / "journal.log").exists()
