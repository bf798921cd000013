"""`--cluster slurm` from end to end on a real SLURM with real training, also over two nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hicmae.data import synthetic
from hicmae.record import RunRecord

pytestmark = [
    pytest.mark.system("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd"),
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.usefixtures("cluster"),
]
CHECKOUT = Path(__file__).resolve().parents[2]
STUDY = '''
"""Two variants that share a pre-training."""
from experiments.experiment import Experiment, Variant

SHORT = {"optim.epochs": 1, "optim.warmup_epochs": 0, "optim.batch_size": 8}


def study():
    variants = (Variant("on", SHORT), Variant("off", {**SHORT, "head.feature_fusion": "last"}))
    return Experiment("tiny", "Tiny", variants, ("synthetic",), folds=(1,), size="smoke", pretrain_corpus="synthetic")
'''
PROFILES = """
[testbed]
memory_gb = 3
cpus_per_task = 1
environment = { HICMAE_WORKERS = "0" }

[testbed.pretrain]
nodes = 2
"""


def hicmae(place: Path, *arguments: str) -> str:
    homes = {name: str(place / "home") for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    places = {"HICMAE_DATA": str(place / "data"), "HICMAE_RUNS": str(place / "runs"), "PYTHONPATH": str(CHECKOUT)}
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.cli", *arguments],
        cwd=place, env={**os.environ, **homes, **places}, capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_a_study_trains_on_slurm_its_pretraining_over_two_nodes(tmp_path: Path) -> None:
    (tmp_path / "home" / "hicmae").mkdir(parents=True)
    (tmp_path / "home" / "hicmae" / "slurm.toml").write_text(PROFILES)
    (tmp_path / "tiny.py").write_text(STUDY)
    synthetic.generate(tmp_path / "data" / "synthetic", speakers=4, clips_per_speaker=4, seconds=1.5, size_px=64, folds=2)

    launch = ("launch", "tiny.py", "--cluster", "slurm", "--profile", "testbed", "--yes")
    told = hicmae(tmp_path, *launch)
    assert "submitted     1 runs as job" in told
    assert "submitted     2 runs as job" in told
    assert "Nothing to start" in hicmae(tmp_path, *launch)
    hicmae(tmp_path, *launch, "--wait")

    study = json.loads((tmp_path / "runs" / "_studies" / "tiny.json").read_text())
    records = [RunRecord(tmp_path / "runs" / run["run_id"]) for run in study["runs"]]
    assert [record.state() for record in records] == ["done"] * 3
    starts = [[event for event in record.events() if event["event"] == "started"] for record in records]
    assert [len(events) for events in starts] == [1, 1, 1]
    assert [events[0]["world_size"] for events in starts] == [2, 1, 1]
    assert study["snapshot"]["commit"]
    assert all(record.snapshot()["code"]["commit"] == study["snapshot"]["commit"] for record in records)
    assert "Nothing left to do" in hicmae(tmp_path, *launch)
    assert '"done": 3' in hicmae(tmp_path, "status", "tiny", "--json")
