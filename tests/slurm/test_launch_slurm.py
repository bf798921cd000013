"""`--cluster slurm` from end to end on a real SLURM with real training, also over two nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hicmae.data import synthetic
from hicmae.record import RunRecord

pytestmark = [
    pytest.mark.system("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd"),
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm launches"),  # beside the other group, on a SLURM of its own
    pytest.mark.usefixtures("cluster"),
]
CHECKOUT = Path(__file__).resolve().parents[2]
STUDY = '''
"""Variants that share a pre-training."""
from experiments.experiment import Experiment, Variant

SHORT = {{"optim.epochs": 1, "optim.warmup_epochs": 0, "optim.batch_size": 8}}


def study():
    variants = [Variant("on", SHORT), Variant("off", {{**SHORT, "head.feature_fusion": "last"}})]
    chosen = tuple(variants[:{variants}])
    return Experiment("tiny", "Tiny", chosen, ("synthetic",), folds=(1,), size="smoke", pretrain_corpus="synthetic")
'''
PROFILES = """
[testbed]
memory_gb = 3
cpus_per_task = 1
environment = {{ HICMAE_WORKERS = "0" }}
setup = [{setup}]

[testbed.pretrain]
nodes = {nodes}
"""
RECEIVER = """
import pathlib, sys
pathlib.Path(__file__).with_name("told.json").write_text(sys.stdin.read())
"""


class Place:
    """A folder from which studies are launched: a user's home, data, runs and profile of one's own."""

    def __init__(self, folder: Path, nodes: int = 1, setup: str = "") -> None:
        self.folder = folder
        (folder / "home" / "hicmae").mkdir(parents=True)
        self.set_profile(nodes, setup)

    def set_profile(self, nodes: int = 1, setup: str = "") -> None:
        lines = PROFILES.format(nodes=nodes, setup=json.dumps(setup) if setup else "")
        (self.folder / "home" / "hicmae" / "slurm.toml").write_text(lines)

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        homes = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
        places = {"HICMAE_DATA": "data", "HICMAE_RUNS": "runs", **dict.fromkeys(homes, "home")}
        environment = {
            **os.environ,
            **{name: str(self.folder / part) for name, part in places.items()},
            "PYTHONPATH": str(CHECKOUT),
        }
        return subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=550, check=False
        )

    def hicmae(self, *words: str, code: int = 0) -> str:
        ended = self.call("-m", "experiments.cli", *words)
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended.stdout

    def study(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / "runs" / "_studies" / f"{name}.json").read_text()))

    def records(self, name: str) -> list[RunRecord]:
        return [RunRecord(self.folder / "runs" / run["run_id"]) for run in self.study(name)["runs"]]

    def runs(self, name: str) -> list[dict[str, Any]]:
        return list(json.loads(self.hicmae("status", name, "--json"))[0]["runs"])


def small_corpus(folder: Path) -> None:
    synthetic.generate(folder / "data" / "synthetic", speakers=4, clips_per_speaker=4, seconds=1.5, size_px=64, folds=2)


def events(record: RunRecord, kind: str) -> list[dict[str, Any]]:
    return [event for event in record.events() if event["event"] == kind]


def test_a_study_trains_on_slurm_its_pretraining_over_two_nodes(tmp_path: Path) -> None:
    place = Place(tmp_path, nodes=2)
    (tmp_path / "tiny.py").write_text(STUDY.format(variants=2))
    small_corpus(tmp_path)

    launch = ("launch", "tiny.py", "--cluster", "slurm", "--profile", "testbed", "--yes")
    told = place.hicmae(*launch)
    assert "submitted     1 runs as job" in told
    assert "submitted     2 runs as job" in told
    assert "Nothing to start" in place.hicmae(*launch)
    place.hicmae(*launch, "--wait")

    study, records = place.study("tiny"), place.records("tiny")
    assert [record.state() for record in records] == ["done"] * 3
    starts = [events(record, "started") for record in records]
    assert [len(found) for found in starts] == [1, 1, 1]
    assert [found[0]["world_size"] for found in starts] == [2, 1, 1]
    assert study["snapshot"]["commit"]
    assert all(record.snapshot()["code"]["commit"] == study["snapshot"]["commit"] for record in records)
    assert "Nothing left to do" in place.hicmae(*launch)
    assert '"done": 3' in place.hicmae("status", "tiny", "--json")


def test_a_full_disk_fails_a_run_in_one_line_and_a_retry_ends_it(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk; making room is taking it away."""
    place = Place(tmp_path, setup="ulimit -f 500")
    (tmp_path / "tiny.py").write_text(STUDY.format(variants=1))
    small_corpus(tmp_path)
    place.hicmae("launch", "tiny.py", "--cluster", "slurm", "--profile", "testbed", "--yes", "--wait", code=1)
    failed, blocked = place.runs("tiny")
    assert (failed["state"], blocked["state"]) == ("failed", "blocked")
    assert "free space there" in failed["reason"]
    assert "\n" not in failed["reason"]

    place.set_profile()
    told = place.hicmae("retry", "tiny", "--reason", "room was made", "--wait")
    assert told.count("submitted     1 runs as job") == 2
    records = place.records("tiny")
    assert [record.state() for record in records] == ["done", "done"]
    assert [len(events(record, "finished")) for record in records] == [1, 1]
    assert [len(events(record, "started")) for record in records] == [2, 1]
    assert all(events(record, "planned")[-1]["reason"] == "retry: room was made" for record in records)
    assert "nothing to retry" in place.hicmae("retry", "tiny", "--reason", "once more")


def test_the_smoke_ablation_goes_through_slurm_from_end_to_end(tmp_path: Path, generated_data: Path) -> None:
    """The very command of the README; the launcher is gone when the runs begin, and a command of the user's is told the end."""
    place = Place(tmp_path)
    (tmp_path / "data").symlink_to(generated_data)
    (tmp_path / "tell me.py").write_text(RECEIVER)
    receiver = f"{sys.executable} '{tmp_path / 'tell me.py'}'"
    options = ("--profile", "testbed", "--max-parallel", "2", "--yes", "--notify", receiver)
    script = str(CHECKOUT / "experiments" / "launch.py")
    launched = place.call(script, "ablation_hierarchical", "--smoke", "--cluster", "slurm", *options)
    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert "submitted the notification" in launched.stdout
    deadline = time.monotonic() + 1500
    while not (tmp_path / "told.json").exists() and time.monotonic() < deadline:
        time.sleep(1)

    name = "ablation_hierarchical_smoke"
    expected = {"study": name, "outcome": "finished", "runs": {"done": 20}, "text": f"{name} finished: 20 done"}
    assert json.loads((tmp_path / "told.json").read_text()) == expected
    for record in place.records(name):
        assert [len(events(record, kind)) for kind in ("submitted", "started", "failed", "finished")] == [1, 1, 0, 1]
    assert "tell me.py" not in place.study(name)["command"]
    assert not [path for path in (tmp_path / "runs").rglob("array.json") if "tell me.py" in path.read_text()]
