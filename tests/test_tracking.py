"""Into MLflow exactly once: what a person finds there, repetition, kills at any moment, servers that are away."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from PIL import Image
from study_records import EPOCHS, CorpusOnDisk, StudyOnDisk, VariantOnDisk

from hicmae.config import flatten
from hicmae.errors import HicmaeError
from hicmae.record import RunRecord, write_json
from hicmae.tracking import SyncReport, default_uri, is_up_to_date, sync
from hicmae.tracking.content import Point, batches, key
from hicmae.tracking.files import draw_confusion
from reports.analysis import analyse
from reports.provenance import mlflow_links
from reports.query import load_study
from reports.summaries import summaries

pytestmark = pytest.mark.xdist_group("tracking")  # its fixtures are made once

NAME = "study_smoke"
MODEL_FILES = ("config.json", "model.json", "final.safetensors")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
VARIANTS = [
    VariantOnDisk("all three", 0.8, {"fusion": True}),
    VariantOnDisk("no fusion", 0.6, {"fusion": False}, {"head.feature_fusion": "last"}),
    VariantOnDisk("no skips", 0.5, {"fusion": True}, {"decoder.skip_connections": False}),
]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty SQLite store, made once: MLflow takes seconds for its tables."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


def new_study(root: Path, store: bytes, **changes: Any) -> StudyOnDisk:
    (root / "_mlflow").mkdir(parents=True)
    (root / "_mlflow" / "mlflow.db").write_bytes(store)
    corpora = {"synthetic": CorpusOnDisk(folds=2)}
    study = StudyOnDisk(root, NAME, VARIANTS, corpora, table={"baseline": "all three"}, **changes).write()
    for result in root.glob("*/result.json"):
        (result.parent / "checkpoints" / "final.safetensors").write_bytes(b"weights of " + result.parent.name.encode())
    return study


@pytest.fixture
def study(tmp_path: Path, empty_store: bytes) -> StudyOnDisk:
    return new_study(tmp_path / "runs", empty_store)


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory, empty_store: bytes) -> StudyOnDisk:
    study = new_study(tmp_path_factory.mktemp("synced") / "runs", empty_store)
    quiet_sync(study, summarise=summaries)
    return study


def quiet_sync(study: StudyOnDisk, **options: Any) -> SyncReport:
    return sync(study.root, say=lambda line: None, **options)


def client_of(study: StudyOnDisk) -> MlflowClient:
    return MlflowClient(default_uri(study.root))


def runs_of(study: StudyOnDisk) -> dict[str, Run]:
    """hicmae run id -> run; fails if a run is there twice."""
    client = client_of(study)
    experiment = client.get_experiment_by_name(study.name)
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    ids = [run.data.tags["hicmae.run_id"] for run in runs]
    assert max(Counter(ids).values()) == 1
    return dict(zip(ids, runs, strict=True))


def everything(study: StudyOnDisk) -> dict[str, Any]:
    """All that MLflow shows of a study, without its own ids."""
    client, found = client_of(study), {}
    experiment = client.get_experiment_by_name(study.name).experiment_id
    models = {model.model_id: model for model in client.search_logged_models([experiment], max_results=100)}
    for run_id, run in runs_of(study).items():
        histories = {
            name: sorted((m.step, m.timestamp, m.value) for m in client.get_metric_history(run.info.run_id, name))
            for name in run.data.metrics
        }
        tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}
        files = sorted(item.path for item in client.list_artifacts(run.info.run_id))
        inputs = [(i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs]
        outputs = [models.pop(output.model_id) for output in run.outputs.model_outputs]
        trained = [(m.name, str(m.status), m.source_run_id == run.info.run_id, bool(model_files(m))) for m in outputs]
        found[run_id] = (run.info.status, run.info.run_name, run.data.params, tags, histories, files, inputs, trained)
    assert not models, "every logged model belongs to one run"
    return found


def model_files(model: LoggedModel) -> dict[str, Path]:
    """The files of a logged model on this disk."""
    folder = Path(model.artifact_location.removeprefix("file://"))
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def test_study_becomes_parents_with_children(synced: StudyOnDisk) -> None:
    runs = runs_of(synced)
    assert set(runs) == {*synced.runs, "variant:all three", "variant:no fusion", "variant:no skips", "variant:shared"}
    for run_id, entry in synced.runs.items():
        parent = f"variant:{entry['variants'][0]}" if len(entry["variants"]) == 1 else "variant:shared"
        assert runs[run_id].data.tags["mlflow.parentRunId"] == runs[parent].info.run_id
    assert runs["variant:no skips"].info.run_name == "no skips"


def test_run_has_readable_name_flat_parameters_and_searchable_tags(synced: StudyOnDisk) -> None:
    path = synced.path("no fusion", "synthetic", 2)
    run = runs_of(synced)[path.name]
    assert run.info.run_name == "synthetic fold 2 seed 0: no fusion"
    assert run.info.status == "FINISHED"
    flat = flatten(RunRecord(path).config())
    assert set(run.data.params) == set(flat)
    assert run.data.params["head.feature_fusion"] == "last"
    wanted = {"corpus": "synthetic", "fold": "2", "seed": "0", "stage": "finetune", "variant": "no fusion", "state": "done"}
    assert {name: run.data.tags[f"hicmae.{name}"] for name in wanted} == wanted
    assert f"hicmae reproduce {path.name}" in run.data.tags["mlflow.note.content"]
    [data] = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("synthetic", flat["data.fingerprint"][:12])


def test_curves_are_those_of_the_record(synced: StudyOnDisk) -> None:
    path, client = synced.path("all three", "synthetic", 1), client_of(synced)
    run = runs_of(synced)[path.name]
    lines = [line for line in RunRecord(path).metrics() if line["split"] == "train"]
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value, m.timestamp) for m in history] == [
        (x["step"], x["values"]["loss"], int(1000 * x["time"])) for x in lines
    ]
    assert len(client.get_metric_history(run.info.run_id, "test/UAR")) == EPOCHS
    assert run.data.metrics["system/samples_per_s"] == 12.5
    result = RunRecord(path).result()
    assert result is not None and run.data.metrics["last/UAR"] == pytest.approx(result["metrics"]["last"]["UAR"])
    recalls = [value for name, value in run.data.metrics.items() if name.startswith("recall/")]
    assert len(recalls) == 4 and sum(recalls) / 4 == pytest.approx(result["metrics"]["last"]["UAR"])


def test_artifacts_hold_the_record_and_the_confusion_matrix(synced: StudyOnDisk, tmp_path: Path) -> None:
    path, client = synced.path("all three", "synthetic", 1), client_of(synced)
    run = runs_of(synced)[path.name]
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    record = {"config.json", "snapshot.json", "result.json", "predictions.parquet"}
    assert names == {*record, "confusion.png", "environment.txt"}
    environment = Path(client.download_artifacts(run.info.run_id, "environment.txt", str(tmp_path))).read_text()
    assert environment.splitlines() == ["# Python 3.11.7 on ?", "torch==2.11.0"]
    fetched = Path(client.download_artifacts(run.info.run_id, "predictions.parquet", str(tmp_path)))
    assert fetched.read_bytes() == (path / "predictions.parquet").read_bytes()
    assert Path(client.download_artifacts(run.info.run_id, "confusion.png", str(tmp_path))).read_bytes().startswith(b"\x89PNG")


def test_difference_of_the_code_and_pictures_of_the_run_are_artifacts(study: StudyOnDisk, tmp_path: Path) -> None:
    path, client = study.path("all three", "synthetic", 1), client_of(study)
    snapshot = RunRecord(path).snapshot()
    write_json(path / "snapshot.json", {**snapshot, "code": {**snapshot["code"], "dirty": True, "diff": "-a\n+b"}})
    (path / "pictures").mkdir()
    (path / "pictures" / "layer-weights.png").write_bytes(b"a picture")
    quiet_sync(study)
    run = runs_of(study)[path.name].info.run_id
    assert Path(client.download_artifacts(run, "code.diff", str(tmp_path))).read_text() == "-a\n+b\n"
    assert [item.path for item in client.list_artifacts(run, "pictures")] == ["pictures/layer-weights.png"]


def test_confusion_matrix_is_drawn_with_the_darkest_field_where_most_answers_are(tmp_path: Path) -> None:
    draw_confusion(["a", "quite long name"], [[9, 1], [0, 10]], tmp_path / "c.png")
    picture = np.asarray(Image.open(tmp_path / "c.png"))
    shades = {value for value, count in zip(*np.unique(picture, return_counts=True), strict=True) if count > 1000}
    assert {0, 25, 225, 250} <= shades


def test_logged_model_links_the_weights_of_the_run_and_pins_what_it_needs(synced: StudyOnDisk) -> None:
    path, client = synced.path("no fusion", "synthetic", 1), client_of(synced)
    [output] = runs_of(synced)[path.name].outputs.model_outputs
    found = model_files(client.get_logged_model(output.model_id))
    assert set(found) == {"MLmodel", "requirements.txt", "python_env.yaml", *(f"data/{name}" for name in MODEL_FILES)}
    assert found["data/final.safetensors"].samefile(path / "checkpoints" / "final.safetensors")
    lines = found["requirements.txt"].read_text().splitlines()
    assert lines[0].startswith("# hicmae") and "0" * 40 in lines[0] and lines[1:] == ["torch==2.11.0"]


def test_parent_shows_the_table_that_the_report_has(synced: StudyOnDisk) -> None:
    parent = runs_of(synced)["variant:no skips"]
    corpus = analyse(load_study(synced.root, NAME), np.random.default_rng(0), 20).corpora[0]
    pooled = corpus.cell("no skips").pooled
    assert parent.data.metrics == {f"pooled/{name}": pytest.approx(value) for name, value in pooled.items()}
    assert f"| {pooled['UAR']:.2f} |" in parent.data.tags["mlflow.note.content"]
    assert parent.info.status == "FINISHED"


def test_reports_find_the_pages(synced: StudyOnDisk) -> None:
    links = mlflow_links(synced.root)[NAME]
    runs = runs_of(synced)
    assert set(links) == set(runs)
    assert all(links[run_id].endswith(f"/runs/{run.info.run_id}") for run_id, run in runs.items())


def test_second_call_sends_nothing(study: StudyOnDisk) -> None:
    first = quiet_sync(study, summarise=summaries)
    before = everything(study)
    second = quiet_sync(study, summarise=summaries)
    assert first.sent_runs == len(study.runs) and first.points > 0
    assert (second.sent_runs, second.points, second.unchanged_runs) == (0, 0, len(study.runs))
    assert everything(study) == before


def test_all_sent_again_changes_nothing(study: StudyOnDisk) -> None:
    """As from another machine, which remembers nothing."""
    quiet_sync(study, summarise=summaries)
    before = everything(study)
    for path in (study.root / "_mlflow").glob("state-*.json"):
        path.unlink()
    again = quiet_sync(study, summarise=summaries)
    assert (again.sent_runs, again.points) == (0, 0)
    assert everything(study) == before


def test_points_of_a_run_that_goes_on_arrive_as_they_come(study: StudyOnDisk) -> None:
    path = study.path("all three", "synthetic", 1)
    result, predictions = (path / "result.json").read_bytes(), (path / "predictions.parquet").read_bytes()
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "result.json").unlink()
    (path / "predictions.parquet").unlink()
    (path / "metrics.jsonl").write_text("".join(lines[:5]) + lines[5][:20])  # the last line torn
    quiet_sync(study)
    assert runs_of(study)[path.name].info.status == "SCHEDULED"
    assert len(client_of(study).get_metric_history(runs_of(study)[path.name].info.run_id, "train/loss")) == 2
    (path / "metrics.jsonl").write_text("".join(lines))
    (path / "result.json").write_bytes(result)
    (path / "predictions.parquet").write_bytes(predictions)
    assert quiet_sync(study).sent_runs == 1
    history = client_of(study).get_metric_history(runs_of(study)[path.name].info.run_id, "train/loss")
    assert [point.step for point in history] == [10, 20, 30, 40]
    assert runs_of(study)[path.name].info.status == "FINISHED"


def test_a_point_logged_again_after_a_resume_is_there_once(study: StudyOnDisk) -> None:
    path = study.path("all three", "synthetic", 1)
    (path / "result.json").unlink()
    quiet_sync(study)
    RunRecord(path).append_metrics("train", 40, 4, {"loss": 0.375})
    RunRecord(path).append_metrics("train", 50, 5, {"loss": 0.3})
    quiet_sync(study)
    history = client_of(study).get_metric_history(runs_of(study)[path.name].info.run_id, "train/loss")
    assert [point.step for point in history] == [10, 20, 30, 40, 50]


KILLED = """
import os, signal, sys
from pathlib import Path
import mlflow.tracking.client as tracking
from hicmae.tracking import sync
from reports.summaries import summaries

def die_at(name, call, moment):
    real = getattr(tracking.MlflowClient, name)
    def counted(self, *args, **options):
        global seen
        seen += 1
        if seen == call and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = real(self, *args, **options)
        if seen == call and moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    setattr(tracking.MlflowClient, name, counted)

for number, moment in (word.split(":") for word in sys.argv[2:]):
    child = os.fork()
    if child == 0:
        seen = 0
        names = "create_experiment create_run log_batch log_inputs log_artifacts set_terminated update_run "
        names += "create_logged_model finalize_logged_model log_outputs"
        for name in names.split():
            die_at(name, int(number), moment)
        sync(Path(sys.argv[1]), summarise=summaries)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
"""


@pytest.mark.slow
def test_killed_at_any_call_it_goes_on_and_everything_is_there_once(
    study: StudyOnDisk, synced: StudyOnDisk, tmp_path: Path
) -> None:
    """SIGKILL before or after the n-th call that changes MLflow, ever again, always into the same store."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    moments = [
        "1:after",
        "2:before",
        "2:after",
        "3:after",
        "4:before",
        "6:after",
        "8:before",
        "15:before",
    ]
    done = subprocess.run(
        [sys.executable, script, str(study.root), *moments], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    quiet_sync(study, summarise=summaries)
    assert everything(study) == everything(synced)


@pytest.mark.slow
def test_several_at_once_send_everything_once(study: StudyOnDisk, synced: StudyOnDisk) -> None:
    code = "from pathlib import Path; import sys; from hicmae.tracking import sync; from reports.summaries import summaries; "
    code += "sync(Path(sys.argv[1]), summarise=summaries)"
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(study.root)], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.wait() for process in both] == [0, 0]
    assert everything(study) == everything(synced)


def test_damaged_record_is_named_and_the_others_are_sent(study: StudyOnDisk) -> None:
    path = study.path("all three", "synthetic", 1)
    (path / "config.json").write_text("{")
    report = quiet_sync(study)
    assert len(report.problems) == 1 and path.name in report.problems[0]
    assert report.sent_runs == len(study.runs) - 1
    assert path.name not in runs_of(study)


def test_unreadable_predictions_cost_the_picture_only(study: StudyOnDisk) -> None:
    path = study.path("all three", "synthetic", 1)
    (path / "predictions.parquet").write_bytes(b"torn")
    quiet_sync(study)
    run = runs_of(study)[path.name]
    assert "confusion.png" not in {item.path for item in client_of(study).list_artifacts(run.info.run_id)}
    assert "last/UAR" in run.data.metrics


def test_failed_run_says_why(study: StudyOnDisk) -> None:
    path = study.path("all three", "synthetic", 1)
    (path / "result.json").unlink()
    RunRecord(path).append_event("failed", reason="loss is NaN at step 12", step=12)
    quiet_sync(study)
    run = runs_of(study)[path.name]
    assert run.info.status == "FAILED"
    assert "loss is NaN at step 12" in run.data.tags["mlflow.note.content"]


class _Broken(BaseHTTPRequestHandler):
    """A server that answers 500 to everything."""

    def do_GET(self) -> None:
        self.send_response(500)
        self.end_headers()
        self.wfile.write(b'{"error_code": "INTERNAL_ERROR", "message": "on fire"}')

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def server_that(how: str) -> Iterator[int]:
    """The port of a server that answers 500, that takes connections and says nothing, or that is not there."""
    if how == "answers 500":
        with HTTPServer(("127.0.0.1", 0), _Broken) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield server.server_port
            server.shutdown()
        return
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if how == "says nothing":
            silent.listen(100)
        yield silent.getsockname()[1]


@pytest.mark.parametrize(
    ("how", "reason"),
    [("answers 500", "too many 500 error responses"), ("says nothing", "Read timed out"), ("is not there", "Connection refused")],
)
def test_server_that_is_of_no_use_costs_one_line_and_a_delay(
    study: StudyOnDisk, monkeypatch: pytest.MonkeyPatch, how: str, reason: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    said: list[str] = []
    with server_that(how) as port, pytest.raises(HicmaeError, match="nothing is lost") as error:
        sync(study.root, f"http://127.0.0.1:{port}", say=said.append, patience_s=1.0)
    assert "\n" not in str(error.value) and re.search(reason, str(error.value))
    assert len(said) <= 1 and all("does not answer" in line and len(line) < 250 for line in said)
    if how == "says nothing":
        assert quiet_sync(study).sent_runs == len(study.runs)  # elsewhere, all of it


def test_deleted_experiment_is_one_clear_line(study: StudyOnDisk) -> None:
    quiet_sync(study)
    client = client_of(study)
    client.delete_experiment(client.get_experiment_by_name(NAME).experiment_id)
    with pytest.raises(HicmaeError, match="was deleted"):
        quiet_sync(study)


def test_new_database_gets_everything_again(study: StudyOnDisk, empty_store: bytes) -> None:
    """By another process: this one has the removed file open."""
    quiet_sync(study)
    database = study.root / "_mlflow" / "mlflow.db"
    database.unlink()
    database.write_bytes(empty_store)
    command = [sys.executable, "-m", "experiments.cli", "sync", "--runs", str(study.root)]
    said = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    assert f"{len(study.runs)} runs sent, 0 unchanged" in said


def test_runs_that_were_not_started_are_not_shown(tmp_path: Path, empty_store: bytes) -> None:
    study = new_study(tmp_path / "runs", empty_store, skip=lambda variant, corpus, fold, seed: fold == 2)
    report = quiet_sync(study)
    assert report.sent_runs == len(study.runs) - 3
    assert study.path("all three", "synthetic", 2).name not in runs_of(study)


def test_nothing_launched_is_nothing_to_send(tmp_path: Path) -> None:
    assert sync(tmp_path) == SyncReport()


def test_up_to_date_is_known_without_asking_mlflow(study: StudyOnDisk) -> None:
    assert not is_up_to_date(study.root)
    quiet_sync(study, summarise=summaries)
    assert is_up_to_date(study.root)
    assert not is_up_to_date(study.root, "http://127.0.0.1:9")  # another store was told nothing
    RunRecord(study.path("all three", "synthetic", 1)).append_event("checkpoint", step=99)
    assert not is_up_to_date(study.root)
    quiet_sync(study)
    (study.root / "_mlflow" / "mlflow.db").unlink()
    assert not is_up_to_date(study.root)


def test_command_line_sends_and_says_what(study: StudyOnDisk) -> None:
    from typer.testing import CliRunner

    from experiments.cli import app

    first = CliRunner().invoke(app, ["sync", "--runs", str(study.root)])
    assert first.exit_code == 0 and f"{len(study.runs)} runs sent" in first.output
    again = CliRunner().invoke(app, ["sync", "--if-changed", "--runs", str(study.root)])
    assert again.exit_code == 0 and "up to date" in again.output
    unknown = CliRunner().invoke(app, ["sync", "nonesuch", "--runs", str(study.root)])
    assert unknown.exit_code != 0 and "nonesuch" in str(unknown.exception)


def test_batches_keep_order_and_stay_small() -> None:
    found = [Point("train", step, 0, dict.fromkeys("abc", 1.0)) for step in range(100)]
    made = list(batches(found, 10))
    assert [point for batch in made for point in batch] == found
    assert all(sum(len(point.values) for point in batch) <= 10 for batch in made)


def test_metric_names_are_made_acceptable() -> None:
    assert key("recall/50% & {x}") == "recall/50_ _ _x_"
