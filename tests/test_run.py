"""A run, as users and schedulers execute it: real processes on real (generated) clips, killed, resumed, damaged, starved."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import av
import pyarrow.parquet as pq
import pytest
import torch
from forge import forge
from run_cases import (  # noqa: F401 - fixtures
    FINETUNE,
    ONE_PROCESS,
    PRETRAIN,
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

from hicmae.config import (
    EngineConfig,
    EvaluationConfig,
    RunConfig,
    change,
)
from hicmae.errors import UsageError
from hicmae.record import RunRecord
from hicmae.train.checkpoint import file_digest

pytestmark = ONE_PROCESS


def killed_at_random_steps(runner: Runner, config: RunConfig, times: int) -> RunRecord:
    """A run that was killed so many times before it was done; one that was done too soon is begun anew."""
    draw = random.Random()
    while True:
        record, killed = runner.create(config), 0
        while killed < times and not record.result():
            at = training_steps(record) + draw.randint(1, 2)
            process = runner.start(record, HICMAE_CHECKPOINT_S="0")
            wait_until(lambda at=at, record=record: training_steps(record) >= at or record.result())
            time.sleep(draw.uniform(0, 0.05))
            process.kill()
            ended = process.wait()
            assert ended in (-signal.SIGKILL, 0), log_of(record)
            killed += ended == -signal.SIGKILL and not record.result()
        if killed == times:
            return record
        shutil.rmtree(record.path)


@pytest.mark.parametrize("config", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_killed_at_random_steps_and_resumed_it_is_bit_identical(
    runner: Runner, whole: dict[str, RunRecord], config: RunConfig
) -> None:
    record = killed_at_random_steps(runner, config, times=3 if config is PRETRAIN else 2)
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


def test_a_run_killed_right_before_it_was_done_is_finished_when_executed_again(
    runner: Runner, whole: dict[str, RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint names files beside it, which must be there until the result is."""
    from hicmae.run import execute

    record = runner.create(FINETUNE)
    with monkeypatch.context() as end, pytest.raises(KeyboardInterrupt):
        end.setattr(RunRecord, "finish", interrupt)
        execute(record.path, threads=1, checkpoint_every_s=0)
    weights = [record.path / "checkpoints" / f"{name}.safetensors" for name in ("final", "validation")]
    assert all(path.exists() for path in weights) and training_steps(record) and record.result() is None
    ours = execute(record.path, threads=1)
    assert ours["metrics"] == whole["finetune"].result()["metrics"]  # type: ignore[index]
    assert [file_digest(path) for path in weights] == [
        file_digest(whole["finetune"].path / "checkpoints" / path.name) for path in weights
    ]
    assert sorted(path.name for path in weights[0].parent.iterdir()) == ["final.safetensors", "validation.safetensors"]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_run_killed_right_after_it_was_done_is_tidied_when_executed_again(runner: Runner, whole: dict[str, RunRecord]) -> None:
    record = runner.create(PRETRAIN)
    shutil.copytree(whole["pretrain"].path, record.path, dirs_exist_ok=True)
    for left in ("step-00000012", "selected"):  # one after the other
        (record.path / "checkpoints" / left).mkdir()
        assert runner.start(record).wait() == 0
        assert sorted(path.name for path in (record.path / "checkpoints").iterdir()) == [
            "epoch-0002.safetensors",
            "final.safetensors",
        ]


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
    record = runner.create(change(FINETUNE, {"optim.batch_size": 6}))
    assert 2 in [process.wait() for process in runner.start_several(2, record)]
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
    assert runner.start(record, HICMAE_THREADS="0").wait() == 2
    assert "HICMAE_THREADS = 0: must be at least 1" in log_of(record)
    for option, least in (("--threads", 1), ("--workers", 0)):
        log = record.path / "log" / "out.txt"
        assert forge().start("hicmae.run:main", [str(record.path), option, "-3"], log, **runner.places).wait() == 2
        assert f"error: {option} = -3: must be at least {least}" in log_of(record)


def test_a_head_that_does_not_fit_the_corpus_is_refused_before_a_clip_is_read(runner: Runner) -> None:
    record = runner.create(change(FINETUNE, {"head.outputs": 5}))
    assert runner.start(record).wait() == 2, log_of(record)
    assert log_of(record) == "error: HeadConfig.outputs = 5: must be 4, the classes of synthetic\n"
    assert [event["event"] for event in record.events()] == ["failed"]


def test_a_place_that_takes_no_record_is_named_in_one_line(runner: Runner) -> None:
    """Its first file, snapshot.json, is larger than this disk allows."""
    record = runner.create(change(PRETRAIN, {"seed": 10}))
    assert runner.start(record, file_limit=1000).wait() == 1
    line = f"error: {record.path}: File too large; free space or allow access there, or choose another place\n"
    assert log_of(record) == line
    assert events(record, "failed")[-1]["reason"] == line[7:-1] and not list(record.path.glob(".snap*"))


@pytest.mark.parametrize(
    "error", [FileNotFoundError("No such file: a.safetensors"), av.InvalidDataError(1094995529, "Invalid data", "clip.mp4")]
)
def test_the_reason_of_a_failure_is_in_the_words_of_what_failed(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from hicmae.run import Attempt, execute

    def fail(attempt: Attempt) -> NoReturn:
        raise error

    record, words = runner.create(change(PRETRAIN, {"seed": 11})), str(error)
    monkeypatch.setattr(Attempt, "run", fail)
    with pytest.raises(type(error)):
        execute(record.path, threads=1)
    assert words in events(record, "failed")[-1]["reason"]


def test_a_process_of_several_ends_without_waiting_for_threads(tmp_path: Path) -> None:
    """Gloo's may never end; what is registered for the end is done and what was printed is not lost."""
    code = (
        "import atexit, threading; from hicmae.run import end_process; atexit.register(print, 'left');"
        "threading.Thread(target=threading.Event().wait).start(); print('printed'); end_process(75)"
    )
    environment = {**os.environ, "WORLD_SIZE": "2", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (75, "printed\nleft\n", "")


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
    short = change(PRETRAIN, {"optim.epochs": 1, "keep_epochs": ()})
    config = change(short, {"engine": EngineConfig(activation_checkpointing=True, zero_stage=1)})
    assert_close(runner.finish(config), runner.finish(short))
