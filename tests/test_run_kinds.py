"""One loop for everything: numbers of processes, ZeRO stages, precisions, one modality, regression, clips that cannot be used."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from forge import forge
from run_cases import (  # noqa: F401 - fixtures
    FINETUNE,
    ONE_PROCESS,
    PRETRAIN,
    TINY,
    Runner,
    assert_close,
    events,
    fixture_places,
    fixture_runner,
    fixture_whole,
    log_of,
    training_steps,
    wait_until,
    weights_digest,
)
from safetensors.torch import load_file

from hicmae import metrics
from hicmae.config import (
    HeadConfig,
    RunConfig,
    change,
)
from hicmae.record import RunRecord

pytestmark = ONE_PROCESS


@pytest.mark.parametrize("config", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_two_processes_train_what_one_trains(runner: Runner, whole: dict[str, RunRecord], config: RunConfig) -> None:
    """Mixup, CutMix, stochastic depth, masks and gathered negatives included; every process sees its own half of the clips."""
    assert_close(runner.finish(config, processes=2), whole[config.stage])


@pytest.mark.parametrize(("stage", "processes", "accumulation"), [(1, 1, 1), (2, 2, 1), (3, 2, 2), (0, 1, 4)])
def test_stages_and_accumulation_train_the_same(
    runner: Runner, whole: dict[str, RunRecord], stage: int, processes: int, accumulation: int
) -> None:
    delta = {"engine.zero_stage": stage, "optim.accumulation_steps": accumulation}
    assert_close(runner.finish(change(FINETUNE, delta), processes), whole["finetune"])


def test_a_signal_to_one_of_two_processes_stops_both_with_one_state(runner: Runner, whole: dict[str, RunRecord]) -> None:
    record = runner.create(change(PRETRAIN, {"engine.zero_stage": 3}))
    processes = runner.start_several(2, record, HICMAE_CHECKPOINT_S="0")
    wait_until(lambda: training_steps(record) >= 3)
    processes[1].kill(signal.SIGTERM)
    assert [process.wait() for process in processes] == [75, 75], log_of(record)
    assert len(events(record, "preempted")) == 1
    assert runner.start(record).wait() == 0
    assert_close(record, whole["pretrain"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_runs_from_end_to_end(runner: Runner, precision: str) -> None:
    record = runner.finish(change(FINETUNE, {"engine.precision": precision, "optim.epochs": 1, "engine.deterministic": True}))
    result = record.result()
    assert result is not None and np.isfinite(result["train_loss_last"])
    assert {value.dtype for value in load_file(record.path / "checkpoints" / "final.safetensors").values()} == {torch.float32}


def test_an_interrupted_fp16_run_is_bit_identical_too(runner: Runner) -> None:
    config = change(PRETRAIN, {"engine.precision": "fp16", "optim.clip_grad_norm": 0.5})
    uninterrupted = runner.finish(config)
    other = Runner(runner.root.parent / "other", runner.places)
    record = other.create(config)
    process = other.start(record, HICMAE_CHECKPOINT_S="0")
    wait_until(lambda: training_steps(record) >= 5)
    process.kill()
    process.wait()
    assert other.start(record).wait() == 0, log_of(record)
    assert weights_digest(record) == weights_digest(uninterrupted)


@pytest.mark.parametrize("modality", ["A", "V"])
def test_one_modality_trains_with_half_the_head(runner: Runner, modality: str) -> None:
    record = runner.finish(change(FINETUNE, {"head.modality": modality, "optim.epochs": 1}))
    names = load_file(record.path / "checkpoints" / "final.safetensors")
    assert names["head.weight"].shape == (4, 2 * TINY.dim)
    assert not [
        name for name in names if name.startswith(("encoder_fusion.", "encoder." if modality == "A" else "encoder_audio."))
    ]


def test_a_regression_runs_through_the_same_loop(runner: Runner, places: dict[str, str], tmp_path: Path) -> None:
    folder = Path(places["HICMAE_DATA"])
    clips = sorted((folder / "synthetic" / "clips").rglob("*.mp4"))
    table = tmp_path / "clips.csv"
    rows = [f"{path},{path.parent.name},{1 + i % 2},{np.sin(i)},{i / 10}" for i, path in enumerate(clips)]
    table.write_text("\n".join(["video,group,fold,target_arousal,target_valence", *rows]))
    delta: dict[str, Any] = {
        "data.corpus": f"csv:{table}",
        "head": HeadConfig(task="regression", outputs=2, loss="ccc"),
        "augment": {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0},
    }
    record = runner.finish(change(FINETUNE, delta), processes=2)
    rows_read = pq.read_table(record.path / "predictions.parquet").to_pandas()
    last = rows_read[rows_read["selection"] == "last"]
    truth, scores = (last[[f"{kind}_{k}" for k in range(2)]].to_numpy() for kind in ("target", "score"))
    np.testing.assert_allclose(scores, sum(last[[f"view_{v}_{k}" for k in range(2)]].to_numpy() for v in range(2)) / 2)
    values = metrics.compute(("PCC", "CCC"), truth, scores, ("arousal", "valence"))
    result = record.result()
    assert result is not None and result["headline"] == "PCC"
    assert {name: result["metrics"]["last"][name] for name in values} == pytest.approx(values)


def test_a_clip_that_cannot_be_used_fails_the_run_before_training_or_is_left_out_and_counted(
    runner: Runner, places: dict[str, str], tmp_path: Path
) -> None:
    broken = tmp_path / "data" / "synthetic"
    shutil.copytree(Path(places["HICMAE_DATA"]) / "synthetic", broken)
    victim = sorted((broken / "clips" / "s03").glob("*.mp4"))[0]
    os.truncate(victim, 200)
    here = {
        "HICMAE_DATA": str(tmp_path / "data"),
        "HICMAE_STORE": str(tmp_path / "store"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    record = runner.create(PRETRAIN)
    log = record.path / "log" / "out.txt"
    assert forge().start("hicmae.run:main", [str(record.path)], log, **{**places, **here}).wait() == 1
    reason = events(record, "failed")[-1]["reason"]
    assert reason.startswith(f"{victim}: ") and "--on-error skip" in reason
    assert not record.metrics()
    here["HICMAE_ON_ERROR"] = "skip"  # as a launch with --on-error passes it on
    assert forge().start("hicmae.run:main", [str(record.path)], log, **{**places, **here}).wait() == 0, log_of(record)
    assert [event["on_error"] for event in events(record, "started")][-1] == "skip"
    result = record.result()
    assert result is not None and result["n_train"] == 23
    assert len(result["skipped_clips"]) == 1 and str(victim) in result["skipped_clips"][0]
