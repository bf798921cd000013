"""Launching real training: a tiny study on a small generated corpus, executed, stopped, continued, broken on purpose."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from hicmae.data import synthetic
from hicmae.record import RunRecord
from hicmae.tracking import default_uri

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[2]
STUDY = '''
"""Two variants that share a pre-training."""
from experiments.experiment import Experiment, Table, Variant

SHORT = {{"optim.epochs": {epochs}, "optim.warmup_epochs": 0, "optim.batch_size": 8, **{extra}}}


def study():
    return Experiment(
        name="tiny",
        title="Tiny",
        size="smoke",
        corpora=("synthetic",),
        folds=(1,),
        pretrain_corpus="synthetic",
        variants=(Variant("on", SHORT), Variant("off", {{**SHORT, "head.feature_fusion": "last"}})),
        table=Table(baseline="off"),
    )
'''


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated corpus of 16 short clips."""
    folder = tmp_path_factory.mktemp("data")
    synthetic.generate(folder / "synthetic", speakers=4, clips_per_speaker=4, seconds=1.5, size_px=64, folds=2)
    return folder


def start(place: Path, data: Path, *arguments: str) -> subprocess.Popen[str]:
    homes = {name: str(place / "home") for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    environment = {**os.environ, **homes, "HICMAE_DATA": str(data), "HICMAE_RUNS": str(place / "runs")}
    command = [sys.executable, str(CHECKOUT / "experiments" / "launch.py"), str(place / "tiny.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=place)


def launch(place: Path, data: Path, *arguments: str) -> tuple[int, str]:
    started = start(place, data, *arguments)
    output, _ = started.communicate(timeout=600)
    return started.returncode, output


def records(place: Path) -> dict[str, RunRecord]:
    """By stage and variants."""
    study = json.loads((place / "runs" / "_studies" / "tiny.json").read_text())
    return {f"{run['stage']} {' '.join(run['variants'])}": RunRecord(place / "runs" / run["run_id"]) for run in study["runs"]}


def test_a_study_is_executed_once_and_then_nothing_is_left(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.py").write_text(STUDY.format(epochs=1, extra="{}"))
    code, output = launch(tmp_path, data, "--yes")
    assert code == 0, output
    found = records(tmp_path)
    assert set(found) == {"pretrain on off", "finetune on", "finetune off"}
    assert all(record.state() == "done" for record in found.values())
    result = found["finetune on"].result()
    assert result is not None
    assert result["n_test"] == 8
    assert (found["finetune on"].path / "predictions.parquet").exists()
    assert "UAR" in output
    assert "mlflow" not in output, "left alone with HICMAE_SYNC=0"

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/events.jsonl")}
    code, output = launch(tmp_path, data, "--yes")
    assert (code, output.strip()) == (0, "Nothing left to do: all 3 runs of tiny are done.")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    monkeypatch.setenv("HICMAE_SYNC", "1")
    code, output = launch(tmp_path, data, "--yes")
    assert code == 0 and "mlflow: 1 study, 3 runs sent" in output
    _shows_its_tables(tmp_path / "runs")


def _shows_its_tables(runs: Path) -> None:
    """The launcher's own carrying into MLflow gives the variants' parent runs their tables."""
    client = MlflowClient(default_uri(runs))
    experiment = client.get_experiment_by_name("tiny").experiment_id
    found = {run.data.tags["hicmae.run_id"]: run.data for run in client.search_runs([experiment])}
    for name in ("variant:on", "variant:off"):
        assert "pooled/UAR" in found[name].metrics and "| 1/1 |" in found[name].tags["mlflow.note.content"]


def test_ctrl_c_leaves_a_good_state_and_a_second_launch_goes_on(tmp_path: Path, data: Path) -> None:
    (tmp_path / "tiny.py").write_text(STUDY.format(epochs=40, extra="{}"))
    launcher = start(tmp_path, data, "--yes", "--only", "stage=pretrain")
    while not list((tmp_path / "runs").glob("*/metrics.jsonl")):
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 130, output
    assert "launch again to go on" in output
    record = records(tmp_path)["pretrain on off"]
    assert record.state() == "interrupted"
    assert record.events()[-1]["event"] == "preempted"

    code, output = launch(tmp_path, data, "--yes", "--only", "stage=pretrain")
    assert code == 0, output
    starts = [event for event in record.events() if event["event"] == "started"]
    assert [event["attempt"] for event in starts] == [1, 2]
    assert starts[1]["step"] > 0
    assert sorted(path.name for path in (record.path / "log").iterdir()) == ["attempt-1.log", "attempt-2.log"]


def test_a_loss_that_is_not_finite_fails_the_run_and_blocks_what_needs_it(tmp_path: Path, data: Path) -> None:
    (tmp_path / "tiny.py").write_text(STUDY.format(epochs=3, extra='{"pretrain.optim.base_lr": 1e30}'))
    code, output = launch(tmp_path, data, "--yes")
    assert code == 1, output
    found = records(tmp_path)
    assert found["pretrain on off"].state() == "failed"
    failure = found["pretrain on off"].events()[-1]
    assert isinstance(failure["step"], int)
    assert [found[name].state() for name in ("finetune on", "finetune off")] == ["blocked", "blocked"]
    assert failure["reason"] in output
    assert "attempt-1.log" in output
