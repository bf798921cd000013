"""Trials in a real PostgreSQL server, for groups that have one: an exact budget with many workers on one database."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import postgres
from test_search_workers import calls, declare, trials, worker

from experiments.search.worker import STORAGE

pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
pytestmark = [pytest.mark.system("initdb", "postgres"), pytest.mark.slow]


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database."""
    with postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


def test_eight_workers_on_a_database_end_with_exactly_the_budget(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORAGE, server)
    path, runs = declare(tmp_path, 40), tmp_path / "runs"
    workers = [subprocess.Popen(worker(path, runs), stdout=sys.stderr) for _ in range(8)]
    assert [process.wait() for process in workers] == [0] * 8
    found = trials(path, runs)
    assert [trial["number"] for trial in found] == list(range(40)) and {trial["state"] for trial in found} == {"done"}
    assert len(calls(tmp_path)) == 80, "no trial was worked twice"
    assert not (runs / "_studies" / "square" / "journal.log").exists()
