"""What a run leaves behind, and where fine-tuning starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from run_cases import (  # noqa: F401 - fixtures
    FINETUNE,
    ONE_PROCESS,
    PRETRAIN,
    Runner,
    events,
    fixture_places,
    fixture_runner,
    fixture_whole,
)
from safetensors.torch import load_file

from hicmae import metrics
from hicmae.config import (
    InitialWeights,
    change,
)
from hicmae.data.synthetic import CLASSES
from hicmae.record import RunRecord
from hicmae.train.checkpoint import file_digest

pytestmark = ONE_PROCESS


def test_a_pre_training_leaves_the_record_that_was_promised(whole: dict[str, RunRecord]) -> None:
    record = whole["pretrain"]
    result = record.result()
    assert record.state() == "done" and result is not None
    assert result["status"] == "done" and result["steps"] == 12 and result["epochs"] == 4 and result["n_train"] == 24
    assert result["metrics"] == {} and result["skipped_clips"] == [] and result["gpu_hours"] == 0 and result["cpu_hours"] > 0
    assert [event["event"] for event in record.events()] == ["started", "finished"]
    started = events(record, "started")[0]
    assert started["attempt"] == 1 and started["total_steps"] == 12 and started["world_size"] == 1 and started["step"] == 0
    train = [line for line in record.metrics() if line["split"] == "train"]
    assert [line["step"] for line in train] == [3, 6, 9, 12] and [line["epoch"] for line in train] == [1, 2, 3, 4]
    assert train[-1]["values"].keys() == {"loss", "loss_video", "loss_audio", "loss_contrastive", "lr", "grad_norm"}
    parts = train[-1]["values"]
    weighed = parts["loss_video"] + parts["loss_audio"] + 0.0025 * parts["loss_contrastive"]
    assert parts["loss"] == pytest.approx(weighed, rel=1e-5)
    assert result["train_loss_first"] == train[0]["values"]["loss"] and result["train_loss_last"] == train[-1]["values"]["loss"]
    system = [line["values"] for line in record.metrics() if line["split"] == "system"][-1]
    assert system["samples_per_s"] > 0 and 0 <= system["data_wait_share"] <= 1 and system["rss_bytes"] > 0
    kept = sorted(path.name for path in (record.path / "checkpoints").iterdir())
    assert kept == ["epoch-0002.safetensors", "final.safetensors"]
    assert record.snapshot()["data"]["corpus"] == "synthetic" and len(record.snapshot()["data"]["fingerprint"]) == 32


def test_a_fine_tuning_leaves_predictions_from_which_its_metrics_follow(whole: dict[str, RunRecord]) -> None:
    record = whole["finetune"]
    result, table = record.result(), pq.read_table(record.path / "predictions.parquet").to_pandas()
    assert result is not None and set(result["metrics"]) == set(table["selection"]) == {"last", "oracle", "validation"}
    assert result["headline"] == "UAR" and result["n_test"] == 8
    for selection, rows in table.groupby("selection"):
        assert len(rows) == 8 and rows["sample_id"].is_unique and rows["group"].nunique() == 2
        views = np.array([[rows[f"view_{v}_{k}"] for k in range(4)] for v in range(2)]).transpose(0, 2, 1)
        merged = metrics.merge_views(views)
        np.testing.assert_allclose(merged, np.array([rows[f"score_{k}"] for k in range(4)]).T)
        assert (merged.argmax(1) == rows["prediction"]).all()
        values = metrics.compute(("UAR", "WAR"), rows["label"].to_numpy(), rows["prediction"].to_numpy())
        stored = result["metrics"][selection]
        assert {name: stored[name] for name in values} == pytest.approx(values)
        recalls = metrics.recalls(rows["label"].to_numpy(), rows["prediction"].to_numpy(), 4)
        assert [stored[f"recall {name}"] for name in CLASSES] == pytest.approx(recalls.tolist())


def test_the_oracle_and_the_validation_choose_the_earliest_best_epoch(whole: dict[str, RunRecord]) -> None:
    record = whole["finetune"]
    result = record.result()
    assert result is not None
    for selection, split in (("oracle", "test"), ("validation", "validation")):
        curve = [line["values"]["UAR"] for line in record.metrics() if line["split"] == split]
        assert len(curve) == 4
        assert result["metrics"][selection]["epoch"] == 1 + curve.index(max(curve))
    assert result["metrics"]["oracle"]["UAR"] >= result["metrics"]["last"]["UAR"]
    assert (record.path / "checkpoints" / "validation.safetensors").exists()


def test_a_run_that_is_done_is_left_as_it_is(whole: dict[str, RunRecord], places: dict[str, str]) -> None:
    record = whole["pretrain"]
    before = {path: path.stat().st_mtime_ns for path in record.path.rglob("*") if path.is_file() and path.name != "out.txt"}
    assert Runner(record.path.parent, places).start(record).wait() == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_command_line_in_a_process_of_its_own(runner: Runner) -> None:
    """Nothing imported before, no compiler, another folder; the printed lines are short."""
    record = runner.create(change(PRETRAIN, {"optim.epochs": 1, "seed": 5, "keep_epochs": ()}))
    environment = {
        **runner.places,
        "OMP_NUM_THREADS": "1",
        "PATH": "/nowhere",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    for name in ("HOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"):
        if name in os.environ:
            environment[name] = os.environ[name]
    command = [sys.executable, "-m", "hicmae.run", str(record.path), "--workers", "0", "--threads", "1"]
    done = subprocess.run(command, env=environment, cwd=runner.root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(len(line) < 130 for line in lines)
    assert "attempt 1, from the beginning" in lines[0] and "is done" in lines[-1]


def test_fine_tuning_starts_from_the_pre_training_beside_it(runner: Runner) -> None:
    pretrained = runner.finish(PRETRAIN)
    for epoch, name in ((None, "final"), (2, "epoch-0002")):
        delta = {"initial": InitialWeights("run", pretrained.id, epoch), "optim.base_lr": 0.0, "optim.base_min_lr": 0.0}
        tuned = runner.finish(change(FINETUNE, {**delta, "optim.epochs": 1}))
        found = load_file(tuned.path / "checkpoints" / "final.safetensors")
        wanted = load_file(pretrained.path / "checkpoints" / f"{name}.safetensors")
        shared = [key for key in wanted if key.startswith(("encoder.", "encoder_audio.", "encoder_fusion."))]
        assert shared and all(torch.equal(found[key], wanted[key]) for key in shared)


def test_what_fine_tuning_starts_from_is_missing(runner: Runner) -> None:
    def refusal(initial: InitialWeights) -> str:
        record = runner.create(change(FINETUNE, {"initial": initial}))
        assert runner.start(record).wait() == 2
        return str(events(record, "failed")[-1]["reason"])

    pretrained = runner.create(PRETRAIN)
    assert "is not here; launch its study" in refusal(InitialWeights("run", "0123456789abcdef"))
    assert f"is not done; execute it first: python -m hicmae.run {pretrained.path}" in refusal(
        InitialWeights("run", pretrained.id)
    )
    assert "name the epoch in keep_epochs of the pre-training (kept: none)" not in refusal(InitialWeights("run", pretrained.id))
    assert runner.start(pretrained).wait() == 0
    assert "name the epoch in keep_epochs of the pre-training (kept: epoch-0002)" in refusal(
        InitialWeights("run", pretrained.id, 3)
    )
    assert "HICMAE_CHECKPOINTS is not set" in refusal(InitialWeights("official", "ab" * 32))


def test_an_authors_checkpoint_is_found_by_its_digest(runner: Runner, tmp_path: Path) -> None:
    from hicmae.train.objective import build_model

    weights = {name: value + 0.25 for name, value in build_model(PRETRAIN).state_dict().items()}
    (tmp_path / "published").mkdir()
    torch.save({"model": weights}, tmp_path / "published" / "checkpoint-99.pth")
    torch.save({"model": {}}, tmp_path / "published" / "another.pth")
    digest = file_digest(tmp_path / "published" / "checkpoint-99.pth")
    delta = {"initial": InitialWeights("official", digest), "optim.base_lr": 0.0, "optim.base_min_lr": 0.0, "optim.epochs": 1}
    record = runner.finish(change(FINETUNE, delta), HICMAE_CHECKPOINTS=str(tmp_path / "published"))
    found = load_file(record.path / "checkpoints" / "final.safetensors")
    assert torch.equal(found["encoder.blocks.0.mlp.fc1.weight"], weights["encoder.blocks.0.mlp.fc1.weight"])
