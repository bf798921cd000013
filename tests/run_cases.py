"""What the tests of runs share: two small configurations, real processes that execute them, both stages run without interruption.

Tolerance between numbers of processes and ZeRO stages: 1e-5 on weights, 1e-4 on scores.
"""

from __future__ import annotations

import functools
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

from hicmae.config import (
    AugmentConfig,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    EvaluationConfig,
    FinetuneConfig,
    HeadConfig,
    ObjectiveConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
)
from hicmae.data.synthetic import generate
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

ONE_PROCESS = pytest.mark.xdist_group("run")  # of pytest: the fixtures are made once, for all the files


@functools.cache
def _made_clips(root: Path) -> dict[str, str]:
    generate(root / "data" / "synthetic", speakers=6, clips_per_speaker=4, seconds=0.6, size_px=64, processes=1)
    folders = {"HICMAE_DATA": "data", "HICMAE_STORE": "store", "XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "config"}
    return {name: str(root / folder) for name, folder in folders.items()}


@pytest.fixture(name="places")
def fixture_places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """24 clips of 6 speakers, and where the store and caches of these tests are."""
    return _made_clips(tmp_path_factory.getbasetemp() / "places")


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


@pytest.fixture(name="runner")
def fixture_runner(tmp_path: Path, places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    for name, folder in places.items():
        monkeypatch.setenv(name, folder)
    return Runner(tmp_path / "runs", places)


@functools.cache
def _finished(root: Path) -> dict[str, RunRecord]:
    runner = Runner(root / "reference", _made_clips(root / "places"))
    return {config.stage: runner.finish(config) for config in (PRETRAIN, FINETUNE)}


@pytest.fixture(name="whole")
def fixture_whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunRecord]:
    """Both stages, executed once without interruption, by stage."""
    return _finished(tmp_path_factory.getbasetemp())


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
