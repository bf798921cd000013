"""A run, as users and schedulers execute it: real processes on real (generated) clips, killed, resumed, damaged, starved.

Tolerance between numbers of processes and ZeRO stages: 1e-5 on weights, 1e-4 on scores.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from forge import Process, forge
from safetensors.torch import load_file

from hicmae import metrics
from hicmae.config import (
    AugmentConfig,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    EngineConfig,
    EvaluationConfig,
    FinetuneConfig,
    HeadConfig,
    InitialWeights,
    ObjectiveConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    change,
)
from hicmae.data.synthetic import CLASSES, generate
from hicmae.errors import UsageError
from hicmae.record import RunRecord
from hicmae.train.checkpoint import file_digest

TINY = EncoderConfig(
    dim=16, heads=2, depth=2, fusion_depth=1, fusion_heads=2, image_px=32, frames=4, audio_frames=32, mel_bins=32
)
PRETRAIN = PretrainConfig(
    encoder=TINY,
    decoder=DecoderConfig(dim=16, heads=2, depth=2),
    objective=ObjectiveConfig(levels=(2,), video_mask_ratio=0.5, audio_mask_ratio=0.5, gather_negatives=True),
    data=DataConfig(corpus="synthetic", stride_frames=2),
    optim=OptimConfig(base_lr=0.1, batch_size=8, epochs=4, warmup_epochs=1, drop_path=0.2),
    keep_epochs=(2,),
)
FINETUNE = FinetuneConfig(
    encoder=TINY,
    head=HeadConfig(outputs=4),
    data=DataConfig(corpus="synthetic", fold=1, stride_frames=2),
    augment=AugmentConfig(rand_augment="", crop_scales=(1.0, 0.8), random_erasing=0.2),
    optim=OptimConfig(base_lr=0.1, batch_size=8, epochs=4, warmup_epochs=1, drop_path=0.2, layer_decay=0.8, ema_decay=0.8),
    evaluation=EvaluationConfig(selection="validation", validation_fraction=0.3, oracle=True),
)

pytestmark = pytest.mark.xdist_group("run")  # its fixtures are made once


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """24 clips of 6 speakers, and where the store and caches of these tests are."""
    root = tmp_path_factory.mktemp("places")
    generate(root / "data" / "synthetic", speakers=6, clips_per_speaker=4, seconds=0.6, size_px=64, processes=1)
    folders = {"HICMAE_DATA": "data", "HICMAE_STORE": "store", "XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "config"}
    return {name: str(root / folder) for name, folder in folders.items()}


class Runner:
    """Creates runs in one folder and executes them in processes of their own."""

    def __init__(self, root: Path, places: dict[str, str]) -> None:
        self.root, self.places = root, places

    def create(self, config: RunConfig) -> RunRecord:
        return RunRecord.create(self.root, config)

    def start(self, record: RunRecord, file_limit: int | None = None, **environment: str) -> Process:
        log = record.path / "log" / "out.txt"
        return forge().start("hicmae.run:main", [str(record.path)], log, file_limit, **self.places, **environment)

    def start_several(self, count: int, record: RunRecord, **environment: str) -> list[Process]:
        log = record.path / "log" / "out.txt"
        return forge().start_several(count, "hicmae.run:main", [str(record.path)], log, **self.places, **environment)

    def finish(self, config: RunConfig, processes: int = 1, **environment: str) -> RunRecord:
        """Execute a run to its end."""
        record = self.create(config)
        started = [self.start(record, **environment)] if processes == 1 else self.start_several(processes, record, **environment)
        assert [process.wait() for process in started] == [0] * processes, log_of(record)
        return record


@pytest.fixture
def runner(tmp_path: Path, places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    for name, folder in places.items():
        monkeypatch.setenv(name, folder)
    return Runner(tmp_path / "runs", places)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, places: dict[str, str]) -> dict[str, RunRecord]:
    """Both stages, executed once without interruption, by stage."""
    runner = Runner(tmp_path_factory.mktemp("reference"), places)
    return {config.stage: runner.finish(config) for config in (PRETRAIN, FINETUNE)}


def log_of(record: RunRecord) -> str:
    return (record.path / "log" / "out.txt").read_text()[-3000:]


def weights_digest(record: RunRecord) -> str:
    return file_digest(record.path / "checkpoints" / "final.safetensors")


def events(record: RunRecord, kind: str) -> list[dict[str, Any]]:
    return [event for event in record.events() if event["event"] == kind]


def wait_until(condition: Callable[[], object]) -> None:
    """For something that another process does."""
    limit = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.005)


def training_steps(record: RunRecord) -> int:
    return max((event["step"] for event in events(record, "checkpoint")), default=0)


def assert_close(ours: RunRecord, theirs: RunRecord) -> None:
    """Weights and scores equal within the tolerance stated above."""
    found, wanted = (load_file(record.path / "checkpoints" / "final.safetensors") for record in (ours, theirs))
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    if (theirs.path / "predictions.parquet").exists():
        tables = [pq.read_table(record.path / "predictions.parquet") for record in (ours, theirs)]
        assert [tables[0][name].to_pylist() for name in ("sample_id", "selection")] == [
            tables[1][name].to_pylist() for name in ("sample_id", "selection")
        ]
        for k in range(4):
            np.testing.assert_allclose(tables[0][f"view_0_{k}"], tables[1][f"view_0_{k}"], atol=1e-4)


# The record


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


# Resuming


@pytest.mark.parametrize("config", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_killed_at_random_steps_and_resumed_it_is_bit_identical(
    runner: Runner, whole: dict[str, RunRecord], config: RunConfig
) -> None:
    record, draw = runner.create(config), random.Random()
    for _ in range(4):
        process, at = runner.start(record, HICMAE_CHECKPOINT_S="0"), training_steps(record) + draw.randint(1, 3)
        wait_until(lambda at=at: training_steps(record) >= at or record.result())
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0), log_of(record)
    assert runner.start(record).wait() == 0, log_of(record)
    assert weights_digest(record) == weights_digest(whole[config.stage])
    ours, theirs = (
        [(line["split"], line["step"], line["values"]) for line in r.metrics()] for r in (record, whole[config.stage])
    )
    assert [line for line in ours if line[0] != "system"] == [line for line in theirs if line[0] != "system"]
    if config is FINETUNE:
        tables = [pq.read_table(r.path / "predictions.parquet") for r in (record, whole["finetune"])]
        assert tables[0].equals(tables[1])
    attempts = [event["attempt"] for event in events(record, "started")]
    assert attempts == list(range(1, len(attempts) + 1)) and len(attempts) >= 2
    assert not list((record.path / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_saves_the_state_and_asks_to_be_started_again(runner: Runner, whole: dict[str, RunRecord], number: int) -> None:
    record = runner.create(PRETRAIN)
    process = runner.start(record, HICMAE_CHECKPOINT_S="0")
    wait_until(lambda: training_steps(record) >= 2)
    process.kill(number)
    assert process.wait() == 75, log_of(record)
    assert events(record, "preempted")[-1]["step"] == training_steps(record) >= 2
    assert record.state() == "interrupted" and not events(record, "failed")
    assert runner.start(record).wait() == 0
    assert events(record, "started")[-1]["step"] == events(record, "preempted")[-1]["step"]
    assert weights_digest(record) == weights_digest(whole["pretrain"])


def test_a_damaged_checkpoint_costs_a_step_and_nothing_else(runner: Runner, whole: dict[str, RunRecord]) -> None:
    record = runner.create(FINETUNE)
    process = runner.start(record, HICMAE_CHECKPOINT_S="0")
    wait_until(lambda: training_steps(record) >= 4)
    process.kill()
    process.wait()
    newest = max((record.path / "checkpoints").glob("step-*"))
    os.truncate(newest / "state.safetensors", 1000)
    assert runner.start(record).wait() == 0, log_of(record)
    assert "the checksum is wrong; going on from the checkpoint before it" in log_of(record)
    assert events(record, "started")[-1]["step"] == int(newest.name[-8:]) - 1
    assert weights_digest(record) == weights_digest(whole["finetune"])


def test_it_goes_on_with_another_number_of_processes(runner: Runner, whole: dict[str, RunRecord]) -> None:
    record = runner.create(FINETUNE)
    for started in (
        lambda: [runner.start(record, HICMAE_CHECKPOINT_S="0")],
        lambda: runner.start_several(2, record, HICMAE_CHECKPOINT_S="0"),
    ):
        processes, at = started(), training_steps(record) + 2
        wait_until(lambda at=at: training_steps(record) >= at)
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
    assert runner.start(record).wait() == 0, log_of(record)
    assert_close(record, whole["finetune"])
    assert [event["world_size"] for event in events(record, "started")] == [1, 2, 1]


# Processes and stages


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
    arguments = [str(record.path), "--on-error", "skip"]
    assert forge().start("hicmae.run:main", arguments, log, **{**places, **here}).wait() == 0, log_of(record)
    result = record.result()
    assert result is not None and result["n_train"] == 23
    assert len(result["skipped_clips"]) == 1 and str(victim) in result["skipped_clips"][0]


# Where fine-tuning starts


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


# Failures


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(runner: Runner) -> None:
    delta = {"optim.base_lr": 1e30, "optim.epochs": 20, "optim.layer_decay": 1.0, "evaluation": EvaluationConfig()}
    record = runner.create(change(FINETUNE, delta))
    for process in runner.start_several(2, record, HICMAE_CHECKPOINT_S="0"):
        assert process.wait() == 1, log_of(record)
    failed = events(record, "failed")
    assert len(failed) == 1 and record.state() == "failed" and record.result() is None
    assert f"at step {failed[0]['step']};" in failed[0]["reason"] and "lower optim.base_lr" in failed[0]["reason"]
    assert failed[0]["step"] == training_steps(record)  # the state before the bad step is the last one saved
    newest = max((record.path / "checkpoints").glob("step-*"))
    saved = load_file(newest / "state.safetensors")
    assert all(bool(torch.isfinite(value).all()) for name, value in saved.items() if name.startswith("model/"))


def test_scores_that_are_not_finite_stop_the_run_too(runner: Runner) -> None:
    """The last step of an epoch can spoil weights that no training loss has seen yet."""
    record = runner.create(change(FINETUNE, {"optim.base_lr": 1e30, "optim.epochs": 20, "optim.layer_decay": 1.0}))
    for process in runner.start_several(2, record):
        assert process.wait() == 1, log_of(record)
    failed = events(record, "failed")
    assert len(failed) == 1 and "are not finite" in failed[0]["reason"] and failed[0]["step"] >= 1


def test_a_process_that_dies_is_the_reason_not_its_partner_that_noticed(runner: Runner) -> None:
    record = runner.create(change(FINETUNE, {"optim.epochs": 50}))
    first, second = runner.start_several(2, record, HICMAE_CHECKPOINT_S="0")
    wait_until(lambda: training_steps(record) >= 2)
    second.kill()
    assert second.wait() == -signal.SIGKILL and first.wait() == 1
    failed = events(record, "failed")
    assert len(failed) == 1 and failed[0]["reason"].startswith("another process of this run ended or was cut off")


def test_a_full_disk_fails_the_run_in_one_line_and_keeps_the_older_state(runner: Runner, whole: dict[str, RunRecord]) -> None:
    record = runner.create(PRETRAIN)
    process = runner.start(record, HICMAE_CHECKPOINT_S="0")
    wait_until(lambda: training_steps(record) >= 3)
    process.kill()
    process.wait()
    kept = sorted((record.path / "checkpoints").glob("step-*"))
    assert runner.start(record, file_limit=300_000, HICMAE_CHECKPOINT_S="0").wait() == 1
    reason = events(record, "failed")[-1]["reason"]
    assert reason.startswith("cannot write the checkpoint") and reason.endswith("free space there and launch the run again")
    assert sorted((record.path / "checkpoints").iterdir()) == kept
    assert runner.start(record).wait() == 0
    assert weights_digest(record) == weights_digest(whole["pretrain"])


def test_a_second_process_is_told_that_the_run_is_executed_already(runner: Runner) -> None:
    record = runner.create(PRETRAIN)
    first = runner.start(record, HICMAE_CHECKPOINT_S="0")
    wait_until(lambda: training_steps(record) >= 1)
    first.kill(signal.SIGSTOP)  # alive, and holding the run
    try:
        assert record.state() == "running"
        assert runner.start(record).wait() == 2
        assert "another process executes this run already" in log_of(record)
    finally:
        first.kill(signal.SIGCONT)
    assert first.wait() == 0
    assert len(events(record, "started")) == 1 and not events(record, "failed")


def test_data_that_differ_from_the_plan_are_refused(runner: Runner) -> None:
    record = runner.create(change(FINETUNE, {"data.fingerprint": "0" * 32}))
    assert runner.start(record).wait() == 2
    reason = events(record, "failed")[-1]["reason"]
    assert "are not those that the run was planned with (000000000000)" in reason and "hicmae data check synthetic" in reason


def test_a_batch_that_cannot_be_shared_out_is_refused_before_training(runner: Runner) -> None:
    record = runner.create(change(FINETUNE, {"optim.batch_size": 6, "optim.accumulation_steps": 6}))
    assert runner.start(record).wait() == 2
    assert "mixup and cutmix pair samples" in events(record, "failed")[-1]["reason"]
    assert not [line for line in record.metrics() if line["split"] == "train"]


def test_contrast_of_one_clip_a_process_is_refused_before_training(runner: Runner) -> None:
    record = runner.create(change(PRETRAIN, {"optim.batch_size": 2, "objective.gather_negatives": False}))
    assert 2 in [process.wait() for process in runner.start_several(2, record)]
    assert "use at least 4, fewer processes" in events(record, "failed")[-1]["reason"]
    assert not [line for line in record.metrics() if line["split"] == "train"]


def test_what_is_not_a_run_directory_is_refused(runner: Runner, tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none", "is not a run directory"), (tmp_path, "config.json: missing")):
        process = forge().start("hicmae.run:main", [str(path)], tmp_path / "log", **runner.places)
        assert process.wait() in (1, 2)
        assert words in (tmp_path / "log").read_text()


def test_settings_of_the_machine_are_checked(runner: Runner) -> None:
    record = runner.create(change(PRETRAIN, {"seed": 9}))
    assert runner.start(record, HICMAE_WORKERS="many").wait() == 2
    assert "HICMAE_WORKERS = 'many': must be a number" in log_of(record)


def test_execute_is_a_function_of_the_library(runner: Runner, whole: dict[str, RunRecord]) -> None:
    """In this very process, twice: nothing of the first run is in the way of the second."""
    from hicmae.run import execute

    for config in (PRETRAIN, FINETUNE):
        record = runner.create(config)
        assert execute(record.path, threads=1)["steps"] == whole[config.stage].result()["steps"]  # type: ignore[index]
        assert weights_digest(record) == weights_digest(whole[config.stage])
    with pytest.raises(UsageError):
        execute(runner.create(change(FINETUNE, {"data.fingerprint": "1" * 32})).path)


def test_engine_settings_of_a_config_reach_the_run(runner: Runner) -> None:
    config = change(PRETRAIN, {"engine": EngineConfig(activation_checkpointing=True, zero_stage=1), "optim.epochs": 1})
    plain = runner.finish(change(PRETRAIN, {"optim.epochs": 1}))
    assert_close(runner.finish(config), plain)
