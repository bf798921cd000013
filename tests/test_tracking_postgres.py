"""A server for a group: `hicmae mlflow-server` on a real PostgreSQL, filled over HTTP by a sync that is killed part way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
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
    for batch in (2, 5):  # kill while one of the batches is under way
        process = subprocess.Popen(
            [sys.executable, "-c", SYNC, str(study.root), address], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        seen = [line for line, _ in zip((line for line in process.stdout if line == "batch\n"), range(batch), strict=False)]
        process.kill()
        assert len(seen) == batch and process.wait() == -signal.SIGKILL
    sync(study.root, address, summarise=summaries, say=lambda line: None)
    _is_there_once(study, MlflowClient(address), weights=False)
    again = sync(study.root, address, summarise=summaries, say=lambda line: None)
    assert (again.sent_runs, again.points) == (0, 0)
    sync(study.root, address, upload_models=True, say=lambda line: None)
    _is_there_once(study, MlflowClient(address), weights=True)


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
