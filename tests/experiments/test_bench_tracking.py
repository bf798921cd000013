"""`hicmae bench tracking` on a few records: what it measured is what is in the two stores."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console

from experiments import bench_tracking


def test_both_ways_bring_the_same_points(tmp_path: Path) -> None:
    said: list[str] = []
    result = bench_tracking.measure(tmp_path, 2, 1, lambda done, total, what: said.append(what))
    assert (result["runs"], result["sample"], result["points_per_run"]) == (2, 1, 300)
    assert result["parameters_per_run"] >= 40
    assert result["ratio"] == pytest.approx(result["single_ms_per_run"] / result["ms_per_run"])
    histories = {}
    for name in ("batched", "single"):
        client = MlflowClient(f"sqlite:///{tmp_path / name}.db")
        experiment = client.get_experiment_by_name(bench_tracking.STUDY).experiment_id
        runs = [run for run in client.search_runs([experiment]) if "train/loss" in run.data.metrics]
        history = [client.get_metric_history(run.info.run_id, "train/loss") for run in runs]
        histories[name] = [[(point.step, point.value) for point in points] for points in history]
    assert len(histories["batched"]) == 2 and len(histories["single"]) == 1
    assert histories["single"][0] in histories["batched"]
    assert {"writing records", "one call for each value"} <= set(said)
    console = Console(record=True, file=io.StringIO())
    console.print(bench_tracking.table(result))
    assert f"{result['ratio']:.1f}" in console.export_text()
