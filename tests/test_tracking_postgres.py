"""A server for a group: `hicmae mlflow-server` on a real PostgreSQL, filled over HTTP by a sync that is killed part way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from forge import free_port
from mlflow import MlflowClient
from mlflow_server import wait_for
from postgres_server import postgres
from study_records import EPOCHS, CorpusOnDisk, StudyOnDisk, VariantOnDisk
from typer.testing import CliRunner

from experiments.cli import app
from hicmae.errors import UsageError
from hicmae.record import RunRecord
from hicmae.tracking import sync
from reports.summaries import summaries

pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
NAME = "study_smoke"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
SYNC = """
import sys
from pathlib import Path
from hicmae.tracking import sync
from reports.summaries import summaries
import mlflow.tracking.client as tracking
real = tracking.MlflowClient.log_batch
def counted(self, *args, **options):
    print("batch", flush=True)
    return real(self, *args, **options)
tracking.MlflowClient.log_batch = counted
sync(Path(sys.argv[1]), sys.argv[2], summarise=summaries)
"""


@pytest.fixture
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server, once it answers."""
    port, folder = free_port(), tmp_path_factory.mktemp("served")
    with postgres(tmp_path_factory.mktemp("postgres")) as url:
        words = ["mlflow-server", "--port", str(port), "--workers", "1", "--artifacts", str(folder)]
        server = subprocess.Popen(
            [sys.executable, "-m", "experiments.cli", *words],
            env={**ENVIRONMENT, "MLFLOW_BACKEND": url},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def new_study(root: Path) -> StudyOnDisk:
    variants = [VariantOnDisk("on", 0.8), VariantOnDisk("off", 0.6, {}, {"head.feature_fusion": "last"})]
    study = StudyOnDisk(root, NAME, variants, {"synthetic": CorpusOnDisk(folds=2)}, table={"baseline": "on"}).write()
    for result in root.glob("*/result.json"):
        (result.parent / "checkpoints" / "final.safetensors").write_bytes(b"weights")
    return study


@pytest.mark.slow
@pytest.mark.system("initdb", "postgres")
def test_sync_over_http_that_is_killed_brings_everything_once(address: str, tmp_path: Path) -> None:
    study = new_study(tmp_path / "runs")
    process = subprocess.Popen(
        [sys.executable, "-c", SYNC, str(study.root), address], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    seen = [line for line, _ in zip((line for line in process.stdout if line == "batch\n"), range(3), strict=False)]
    process.kill()  # while a batch is under way
    assert len(seen) == 3 and process.wait() == -signal.SIGKILL
    _follow_through_an_outage(study, address)
    _is_there_once(study, MlflowClient(address), weights=False)
    again = sync(study.root, address, summarise=summaries, say=lambda line: None)
    assert (again.sent_runs, again.points) == (0, 0)
    sync(study.root, address, upload_models=True, say=lambda line: None)
    _is_there_once(study, MlflowClient(address), weights=True)


def _follow_through_an_outage(study: StudyOnDisk, address: str) -> None:
    """`sync --follow` meets no server, then one that takes connections and says nothing, then the real one."""
    door = Door(int(address.rpartition(":")[2]))
    options = ["--uri", f"http://127.0.0.1:{door.port}", "--every-s", "0.1", "--patience-s", "1", "--runs", str(study.root)]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", "sync", "--follow", *options],
        env={**ENVIRONMENT, "MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "does not answer (Connection refused); trying again" in process.stdout.readline()
        door.open()
        said = [process.stdout.readline() for _ in range(2)]
    finally:
        process.terminate()
        process.wait()
        door.close()
    assert door.kept_waiting == Door.SILENT  # and their outage was not said again
    assert said[0].startswith(f"mlflow: {NAME}: ") and "runs sent" in said[1], said


class Door:
    """A port that leads to a server once it is open; the first SILENT connections are taken and then hung up on."""

    SILENT = 2

    def __init__(self, server: int) -> None:
        self._server, self.kept_waiting, self._socket = server, 0, socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])

    def open(self) -> None:
        self._socket.listen(100)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            if self.kept_waiting < self.SILENT:
                self.kept_waiting += 1
                threading.Timer(1.0, client.close).start()
                continue
            inside = socket.create_connection(("127.0.0.1", self._server))
            for source, target in ((client, inside), (inside, client)):
                threading.Thread(target=_pass_on, args=(source, target), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(1 << 16):
            target.sendall(block)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _is_there_once(study: StudyOnDisk, client: MlflowClient, weights: bool) -> None:
    experiment = client.get_experiment_by_name(NAME).experiment_id
    runs = {run.data.tags["hicmae.run_id"]: run for run in client.search_runs([experiment])}
    names = Counter(run.data.tags["hicmae.run_id"] for run in client.search_runs([experiment]))
    assert names == Counter([*study.runs, "variant:on", "variant:off", "variant:shared"])
    assert len(client.search_logged_models([experiment])) == len(study.runs)
    for run_id in study.runs:
        run, record = runs[run_id], RunRecord(study.root / run_id)
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert [point.step for point in history] == [10 * epoch for epoch in range(1, EPOCHS + 1)]
        assert run.info.status == "FINISHED" and run.data.params["seed"] == str(record.config().seed)
        assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {"config.json", "result.json", "environment.txt"}
        [model] = run.outputs.model_outputs
        files = {item.path for item in client.list_logged_model_artifacts(model.model_id, "data")}
        assert ("data/final.safetensors" in files) == weights and "data/model.json" in files
    assert "| 2/2 |" in runs["variant:on"].data.tags["mlflow.note.content"]


@pytest.mark.parametrize("backend", ["", "sqlite:///mlflow.db", "mysql://somewhere"])
def test_server_without_postgresql_is_refused_in_one_line(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_BACKEND", backend)
    ended = CliRunner().invoke(app, ["mlflow-server"])
    assert isinstance(ended.exception, UsageError)
    assert "MLFLOW_BACKEND=postgresql://" in str(ended.exception) and "\n" not in str(ended.exception)
