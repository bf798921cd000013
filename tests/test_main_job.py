"""The main job learns: pre-training's loss falls, and fine-tuning beats what one stream alone can reach.

On generated clips the truth is known: four classes of which one stream tells two apart, so one stream alone gives 50 % at best.
On real recordings nothing is claimed of accuracy: the same commands run through, and their record is whole.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from experiments import recipes
from hicmae.config import RunConfig, change
from hicmae.data.manifest import fingerprint
from hicmae.record import RunRecord

pytestmark = pytest.mark.slow


def execute(runs: Path, config: RunConfig) -> RunRecord:
    """Run it as a launcher would: in a process of its own, on one thread."""
    record = RunRecord.create(runs, change(config, {"data.fingerprint": fingerprint(config.data.corpus)}))
    command = [sys.executable, "-m", "hicmae.run", str(record.path), "--threads", "1"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=os.environ.copy())
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return record


def result(record: RunRecord) -> dict[str, Any]:
    found = record.result()
    assert found is not None
    return found


def started_from(pretraining: RunRecord) -> dict[str, str]:
    return {"initial.source": "run", "initial.reference": pretraining.id}


def test_both_streams_together_beat_the_ceiling_of_one(
    tmp_path: Path, generated_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HICMAE_DATA", str(generated_data))
    runs = tmp_path / "runs"

    pretraining = execute(runs, recipes.pretrain("smoke", "synthetic"))
    losses = [point["values"]["loss"] for point in pretraining.metrics() if point["split"] == "train"]
    assert losses[-1] < 0.95 * losses[0]

    start = started_from(pretraining)
    both = execute(runs, change(recipes.finetune("smoke", "synthetic"), start))
    sound = execute(runs, change(recipes.finetune("smoke", "synthetic"), {**start, "head.modality": "A"}))
    face = execute(runs, change(recipes.finetune("smoke", "synthetic"), {**start, "head.modality": "V"}))
    uar = {name: result(record)["metrics"]["last"]["UAR"] for name, record in {"AV": both, "A": sound, "V": face}.items()}
    assert uar["AV"] > 60, uar
    # Four standard errors of a coin over the 96 test clips above one half, where the ceiling of one stream lies.
    assert max(uar["A"], uar["V"]) < 50 + 4 * 100 * (0.25 / 96) ** 0.5, uar
    assert uar["AV"] > max(uar["A"], uar["V"]), uar


@pytest.mark.recordings
def test_real_recordings_go_through_the_same_commands(tmp_path: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for folder in ("voxceleb2", "grid", "ravdess_muxed"):
        for clip in (recordings / folder).glob("*.mp4"):
            (clips / f"{folder}_{clip.name}").symlink_to(clip)
    data = tmp_path / "data"
    data.mkdir()
    (data / "ravdess").symlink_to(recordings / "ravdess_audio")
    monkeypatch.setenv("HICMAE_DATA", str(data))

    shorter = {"optim.epochs": 3, "keep_epochs": (), "optim.batch_size": 13}
    pretraining = execute(tmp_path / "runs", change(recipes.pretrain("smoke", f"folder:{clips}"), shorter))
    found = result(pretraining)
    assert found["n_train"] == 26
    assert found["train_loss_last"] < found["train_loss_first"]

    # The recordings of RAVDESS here are sound alone: eight emotions, and the first of its six published folds.
    delta = {**started_from(pretraining), "head.modality": "A", "optim.epochs": 3}
    finetuning = execute(tmp_path / "runs", change(recipes.finetune("smoke", "ravdess"), delta))
    assert (result(finetuning)["n_train"], result(finetuning)["n_test"]) == (160, 32)
    table = parquet.read_table(finetuning.path / "predictions.parquet").to_pydict()
    assert len(set(table["sample_id"])) == 32
    assert {group[-2:] for group in table["group"]} == {"01", "02", "03", "04"}
