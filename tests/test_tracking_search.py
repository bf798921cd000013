"""A search in MLflow: one parent run with the trials as children, Optuna's figures as its files, the best value as metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from study_records import CorpusOnDisk, StudyOnDisk, VariantOnDisk

from hicmae.record import write_json
from hicmae.tracking import default_uri, is_up_to_date, sync
from reports.summaries import summaries

NAME = "search_finetune_smoke_fold1"
TRIALS = [
    VariantOnDisk(f"trial {number:04d}", 0.5 + 0.1 * number, {}, {"optim.layer_decay": 0.6 + 0.1 * number}) for number in range(3)
]


@pytest.fixture
def study(tmp_path: Path) -> StudyOnDisk:
    """A search of three trials, the third of which is running, with one figure."""
    study = StudyOnDisk(tmp_path / "runs", NAME, TRIALS, {"synthetic": CorpusOnDisk(folds=1)}).write()
    runs = [study.path(trial.name, "synthetic", 1).name for trial in TRIALS]
    trials = [trial(0, runs[0], 55.0, place=2), trial(1, runs[1], 61.5, place=1)]
    write_search(study, [*trials, trial(2, runs[2], None, "running")])
    figures = study.root / "_studies" / NAME / "figures"
    figures.mkdir(parents=True)
    (figures / "history.png").write_bytes(b"a picture")
    return study


def trial(number: int, run: str, value: float | None, state: str = "done", place: int | None = None) -> dict[str, Any]:
    notes, params = {"runs": [run], "splits": 1}, {"optim.layer_decay": 0.6 + 0.1 * number}
    return {"number": number, "state": state, "value": value, "place": place, "params": params, "notes": notes}


def write_search(study: StudyOnDisk, trials: list[dict[str, Any]]) -> None:
    values = json.loads(study.study_file.read_text())
    search = {
        "objective": "validation UAR",
        "direction": "maximize",
        "space": {"optim.layer_decay": "0.6 to 0.9"},
        "trials": trials,
    }
    write_json(study.study_file, {**values, "search": search})


def runs_of(study: StudyOnDisk) -> dict[str, Run]:
    client = MlflowClient(default_uri(study.root))
    experiment = client.get_experiment_by_name(NAME).experiment_id
    return {run.data.tags["hicmae.run_id"]: run for run in client.search_runs([experiment])}


def test_trials_are_children_of_the_search_which_shows_the_best_and_the_figures(study: StudyOnDisk) -> None:
    client = MlflowClient(default_uri(study.root))
    sync(study.root, summarise=summaries, say=lambda line: None)
    runs = runs_of(study)
    assert set(runs) == {*study.runs, f"search:{NAME}"}
    parent = runs[f"search:{NAME}"]
    assert {runs[run_id].data.tags["mlflow.parentRunId"] for run_id in study.runs} == {parent.info.run_id}
    assert parent.data.metrics == {"best/value": 61.5, "best/trial": 1.0, "trials": 2.0, "trial/value": 61.5}
    history = client.get_metric_history(parent.info.run_id, "trial/value")
    assert [(point.step, point.value) for point in history] == [(0, 55.0), (1, 61.5)]
    lines = parent.data.tags["mlflow.note.content"].splitlines()
    assert lines[lines.index("| trial | value | optim.layer_decay |") + 2 :][:2] == ["| 1 | 61.5 | 0.7 |", "| 0 | 55 | 0.6 |"]
    assert [item.path for item in client.list_artifacts(parent.info.run_id, "figures")] == ["figures/history.png"]
    assert parent.info.status == "RUNNING"

    assert is_up_to_date(study.root)
    trials = json.loads(study.study_file.read_text())["search"]["trials"]
    ended = {**trials[2], "state": "done", "value": 70.25, "place": 1}
    write_search(study, [{**trials[0], "place": 3}, {**trials[1], "place": 2}, ended])
    assert not is_up_to_date(study.root)
    for _ in range(2):
        sync(study.root, summarise=summaries, say=lambda line: None)
    parent = runs_of(study)[f"search:{NAME}"]
    assert (parent.data.metrics["best/value"], parent.data.metrics["best/trial"], parent.info.status) == (70.25, 2.0, "FINISHED")
    assert [p.step for p in client.get_metric_history(parent.info.run_id, "trial/value")] == [0, 1, 2]
    assert [p.value for p in client.get_metric_history(parent.info.run_id, "best/value")] == [61.5, 70.25]
