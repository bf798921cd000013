"""Searching over real training on a small generated corpus: better than the recipe, and nothing lost when workers are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from hicmae import presets
from hicmae.data import synthetic
from hicmae.record import RunRecord, read_lines
from hicmae.tracking import default_uri

pytestmark = pytest.mark.slow

LAUNCHER = str(Path(__file__).resolve().parents[2] / "experiments" / "launch.py")
DECLARATION = """
    from experiments.search import Budget, Float, Search

    def search():
        return Search(
            name="tuned", title="Tuned", corpus="synthetic", folds=(1,), size="smoke", pretrain_corpus=None,
            objective="validation loss",
            space={{"optim.base_lr": Float(1e-3, 1e-1, log=True), "optim.layer_decay": Float(0.7, 1.0)}},
            base={{
                "head.modality": "A", "optim.epochs": 3, "optim.warmup_epochs": 0, "optim.batch_size": 8,
                "evaluation.validation_fraction": 0.3,
            }},
            budget=Budget(trials={trials}),
            seed=3,
        )
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated corpus of 72 short clips, and a place for the decoded ones beside it."""
    folder = tmp_path_factory.mktemp("data")
    synthetic.generate(folder / "synthetic", speakers=9, clips_per_speaker=8, seconds=1.5, size_px=64)
    return folder


@pytest.fixture
def place(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the corpus and the clip store where the runs look for them."""
    values = {
        "HICMAE_DATA": data,
        "HICMAE_STORE": data / "store",
        "XDG_CACHE_HOME": data / "cache",
        "HICMAE_RUNS": tmp_path / "runs",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def declare(place: Path, trials: int) -> str:
    path = place / "tuned.py"
    path.write_text(textwrap.dedent(DECLARATION.format(trials=trials)))
    return str(path)


def launched(*words: str) -> str:
    ended = subprocess.run([sys.executable, LAUNCHER, *words, "--yes"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def trials(place: Path) -> list[dict[str, Any]]:
    return list(json.loads((place / "runs" / "_studies" / "tuned_fold1.json").read_text())["search"]["trials"])


def test_thirty_trials_beat_the_recipe_and_what_they_chose_is_judged_on_the_test_part_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = declare(place, 30)
    told = launched(path, "--max-parallel", "2")
    assert "30 of 30 ended" in told
    found = trials(place)
    assert [trial["number"] for trial in found] == list(range(30))
    assert {trial["state"] for trial in found} <= {"done", "pruned"}
    recipe, best = found[0], min((trial for trial in found if trial["state"] == "done"), key=lambda trial: trial["value"])
    optim = presets.finetune("smoke").optim
    assert recipe["params"] == {"optim.base_lr": optim.base_lr, "optim.layer_decay": optim.layer_decay}
    assert best["value"] < 0.95 * recipe["value"], "the search found a clearly better point than the recipe"
    record = RunRecord(place / "runs" / best["notes"]["runs"][0])
    result = record.result() or {}
    assert set(result["metrics"]) == {"inner"} and result["metrics"]["inner"]["loss"] == best["value"]
    splits = {point["split"] for point in record.metrics()}
    assert "validation" in splits and "test" not in splits, "no trial looks at the test part"
    monkeypatch.setenv("HICMAE_SYNC", "1")
    assert "nothing left to do, 30 trials have ended" in launched(path)
    monkeypatch.setenv("HICMAE_SYNC", "0")
    _is_in_mlflow(place, best["value"], {run for trial in found for run in trial["notes"]["runs"]})
    _is_reported(place)
    launched(path, "--use-best")
    judged = json.loads((place / "runs" / "_studies" / "tuned_best.json").read_text())["runs"]
    results = {run["variants"][0]: RunRecord(place / "runs" / run["run_id"]).result() or {} for run in judged}
    assert {name: set(result["metrics"]) for name, result in results.items()} == {"recipe": {"last"}, "best": {"last"}}
    assert all(result["n_test"] == 24 and result["n_train"] == 48 for result in results.values())


def _is_in_mlflow(place: Path, best: float, runs: set[str]) -> None:
    """One parent run has all trials, the best value and Optuna's figures."""
    client = MlflowClient(default_uri(place / "runs"))
    experiment = client.get_experiment_by_name("tuned_fold1").experiment_id
    found = {run.data.tags["hicmae.run_id"]: run for run in client.search_runs([experiment])}
    parent = found.pop("search:tuned_fold1")
    assert set(found) == runs
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    assert parent.data.metrics["best/value"] == best and parent.info.status == "FINISHED"
    figures = {item.path for item in client.list_artifacts(parent.info.run_id, "figures")}
    assert {"figures/history.png", "figures/importance.png", "figures/slice.pdf"} <= figures


def _is_reported(place: Path) -> None:
    """The report has a row for each trial that was run to its end, and the search's figures."""
    words = ["report", "tuned_fold1", "--no-pdf", "--out", str(place / "report")]
    ended = subprocess.run([sys.executable, "-m", "experiments.cli", *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    pictures = {file.name for file in (place / "report" / "tuned_fold1" / "figures").iterdir()}
    assert {"search-history.png", "search-slice.pdf", "search-parallel_coordinates.png"} <= pictures
    assert "trial 0000" in (place / "report" / "tuned_fold1" / "tuned_fold1.csv").read_text()


def test_ten_kills_in_the_middle_of_real_trials_lose_and_repeat_nothing(place: Path) -> None:
    path = declare(place, 10)
    command = [sys.executable, "-m", "experiments.cli", "search", "run", path, "--workers", "2", "--yes"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    killed = _kill_workers(process, place, 10)
    told = process.communicate()[0]
    assert process.returncode == 0, told
    found = trials(place)
    assert [trial["number"] for trial in found] == list(range(10))
    assert {trial["state"] for trial in found} <= {"done", "pruned"}, found
    runs = [run for trial in found for run in trial["notes"]["runs"]]
    assert len(runs) == len(set(runs)) == 10
    for trial in found:
        record = RunRecord(place / "runs" / trial["notes"]["runs"][0])
        finishes = [event for event in record.events() if event["event"] == "finished"]
        assert len(finishes) == (trial["state"] == "done"), "no run was finished twice"
        evaluated = [line["epoch"] for line in read_lines(record.path / "metrics.jsonl") if line["split"] == "validation"]
        attempts = sum(event["event"] == "started" for event in record.events())
        assert len(evaluated) <= 3 * attempts and attempts <= 1 + len(killed["runs"])
    assert len(killed["workers"]) == 10


def _kill_workers(process: subprocess.Popen[str], place: Path, count: int) -> dict[str, set[int]]:
    """SIGKILL workers while their run goes on; every third time the run too."""
    generator = random.Random(4)
    killed: dict[str, set[int]] = {"workers": set(), "runs": set()}
    claims = place / "runs" / "_studies" / "tuned_fold1" / "claims"
    while len(killed["workers"]) < count:
        assert process.poll() is None, process.communicate()[0]
        owners = [int(json.loads(owner.read_text())["pid"]) for owner in _present(claims)]
        owners = sorted(set(owners) - killed["workers"])
        if owners:
            victim = generator.choice(owners)
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                killed["workers"].add(victim)
            if len(killed["workers"]) % 3 == 0:
                _kill_a_run(place, killed["runs"])
        time.sleep(1.0)
    return killed


def _present(claims: Path) -> list[Path]:
    return [owner for owner in claims.glob("*.json") if owner.exists()]


def _kill_a_run(place: Path, killed: set[int]) -> None:
    for path in (place / "runs").glob("*/events.jsonl"):
        record = RunRecord(path.parent)
        starts = [event["pid"] for event in record.events() if event["event"] == "started"]
        if starts and record.is_locked():
            with suppress(ProcessLookupError):
                os.kill(starts[-1], signal.SIGKILL)
                killed.add(starts[-1])
            return
