"""A search on a real SLURM: one array of workers, an exact budget through preemption, time limits and cancelled workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hicmae.data import synthetic
from hicmae.record import RunRecord
from slurm import arrays

pytestmark = [
    pytest.mark.system("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd"),
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm launches"),
    pytest.mark.usefixtures("cluster"),
]
CHECKOUT = Path(__file__).resolve().parents[2]
DECLARATION = """
    import os, time
    from pathlib import Path
    from experiments.search import Budget, Float, Int, Search
    from hicmae.record import append_line

    LOG = Path({log!r})

    def value(params):
        append_line(LOG, {{"at": "begin", "job": os.environ.get("SLURM_JOB_ID"), "pid": os.getpid(), "params": params}})
        time.sleep({pause_s})
        append_line(LOG, {{"at": "end", "job": os.environ.get("SLURM_JOB_ID"), "params": params}})
        {more}
        return (params["x"] - 0.25) ** 2 + params["k"]

    def search():
        return Search(
            name="on_slurm", title="On SLURM", objective=value, direction="minimize",
            space={{"x": Float(-1, 1), "k": Int(0, 3)}}, budget=Budget(trials={trials}), sampler="RandomSampler",
        )
"""
TRAINED = """
    from experiments.search import Budget, Float, Search

    SHORT = {"optim.epochs": 1, "optim.warmup_epochs": 0, "optim.batch_size": 4, "evaluation.validation_fraction": 0.5}

    def search():
        return Search(
            name="trained", title="Trained", corpus="synthetic", folds=(1, 2), size="smoke", pretrain_corpus="synthetic",
            base=SHORT, space={"finetune.optim.base_lr": Float(1e-3, 1e-1, log=True)}, budget=Budget(trials=2),
            pruner="NopPruner",
        )
"""
PROFILES = """
[testbed]
memory_gb = 2
cpus_per_task = 1
environment = {{ HICMAE_WORKERS = "0" }}
{more}
"""


class Place:
    """A folder, with a name that a shell would stumble over, from which searches are launched."""

    def __init__(self, folder: Path, trials: int, pause_s: float, profile: str = "", body: str = "pass") -> None:
        self.folder = folder / "a 'b' $(touch hacked); #"
        self.file = self.folder / "mine.py"
        (self.folder / "home" / "hicmae").mkdir(parents=True)
        (self.folder / "home" / "hicmae" / "slurm.toml").write_text(PROFILES.format(more=profile))
        values = {"trials": trials, "pause_s": pause_s, "more": body, "log": str(self.folder / "calls.jsonl")}
        self.file.write_text(textwrap.dedent(DECLARATION.format(**values)))

    def hicmae(self, *words: str) -> str:
        homes = {name: str(self.folder / "home") for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
        places = {"HICMAE_DATA": str(self.folder / "data"), "HICMAE_RUNS": str(self.folder / "runs"), "PYTHONPATH": str(CHECKOUT)}
        environment = {**os.environ, **homes, **places}
        command = [sys.executable, "-m", "experiments.cli", *words]
        ended = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=550, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr + self.outputs()
        return ended.stdout

    def search(self, *words: str) -> str:
        return self.hicmae("search", "run", "./mine.py", "--cluster", "slurm", "--profile", "testbed", "--yes", *words)

    def trials(self) -> list[dict[str, Any]]:
        return list(json.loads(self.hicmae("search", "status", "./mine.py", "--json"))["trials"])

    def calls(self, at: str) -> list[dict[str, Any]]:
        path = self.folder / "calls.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if line["at"] == at]

    def arrays(self, kind: str = "workers") -> list[arrays.Array]:
        folders = sorted((self.folder / "runs" / "_slurm").glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime)
        return [arrays.read(self.folder / "runs", path.name) for path in folders]

    def ends(self, kind: str) -> list[str]:
        """How the jobs of a kind ended, or what they do now."""
        jobs = [array.job_id for array in self.arrays(kind) if array.job_id]
        return slurm("squeue", "--noheader", "--states=all", f"--jobs={','.join(jobs)}", "--format=%T").split()

    def outputs(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("runs/_slurm/*/*.out"))

    def is_whole(self, trials: int) -> None:
        """Every trial of the budget is there once, with the value that was worked out for it once."""
        found = self.trials()
        assert [trial["number"] for trial in found] == list(range(trials)), self.outputs()
        assert {trial["state"] for trial in found} == {"done"}, found
        ended = Counter(json.dumps(call["params"], sort_keys=True) for call in self.calls("end"))
        assert ended == {json.dumps(trial["params"], sort_keys=True): 1 for trial in found}
        assert not list(self.folder.rglob("hacked")), "a path was executed"


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def until(condition: Callable[[], bool], limit_s: float = 120) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"waited {limit_s} s in vain"
        time.sleep(0.3)


def test_four_workers_meet_the_budget_through_preemption_and_a_cancelled_worker(tmp_path: Path) -> None:
    place = Place(tmp_path, trials=500, pause_s=0.1)
    assert "submitted 4 workers as job" in place.search("--workers", "4")
    assert "4 workers are in the queue already" in place.search("--workers", "4"), "launching twice submits once"
    until(lambda: len({call["job"] for call in place.calls("end")}) == 4)
    job = place.arrays()[0].job_id
    slurm("scancel", f"{job}_1")
    urgent = slurm(
        "sbatch", "--parsable", "--partition=high", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap", "sleep 2"
    )
    until(lambda: slurm("squeue", "--noheader", f"--job={urgent.strip()}", "--states=all", "--format=%T").strip() == "COMPLETED")
    told = place.search("--workers", "4", "--wait")
    assert "submitted 1 workers" in told, "the cancelled one is replaced, the preempted ones come back by themselves"
    place.is_whole(500)
    assert "500 of 500 ended" in told and "best is trial" in told
    assert "nothing left to do, 500 trials have ended" in place.search()


def test_a_search_goes_on_by_itself_as_it_was_launched_through_kills_and_time_limits(tmp_path: Path) -> None:
    place = Place(tmp_path, trials=20, pause_s=3.5, profile="time_h = 0.0167\nsignal_delay_s = 30")
    assert "they go on by themselves until the budget is spent" in place.search("--workers", "2")
    declared = place.file.read_text()
    place.file.write_text("raise SystemExit('edited after the launch')")
    until(lambda: len({call["job"] for call in place.calls("begin")}) == 2)
    for pid in {int(call["pid"]) for call in place.calls("begin")}:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(place.arrays("keeper")) == 2 and set(place.ends("keeper")) == {"COMPLETED"}, 200)
    place.file.write_text(declared)
    place.is_whole(20)
    assert len(place.arrays()) == 2, "the keeper replaced the killed workers, once"
    requeued = slurm(
        "sacct", "--noheader", "--duplicates", "--allocations", f"--jobs={place.arrays()[-1].job_id}", "--format=State"
    )
    assert requeued.split().count("REQUEUED") >= 2, "those at their time limit went back into the queue by themselves"
    assert (place.folder / "runs" / "_studies" / "on_slurm" / "figures" / "history.png").exists()


def test_workers_are_not_submitted_again_for_ever_nor_after_they_were_cancelled(tmp_path: Path) -> None:
    failing = Place(tmp_path / "failing", trials=500, pause_s=0.0, body="raise ValueError('no such thing')")
    waiting = Place(tmp_path / "waiting", trials=1, pause_s=100.0)
    for place in (failing, waiting):
        place.search("--workers", "1")
    until(lambda: bool(waiting.calls("begin")))
    slurm("scancel", str(waiting.arrays()[0].job_id))
    until(lambda: waiting.ends("keeper") == ["COMPLETED"])
    assert len(waiting.arrays()) == 1 and "the workers were cancelled; launch the search again" in waiting.outputs()
    until(lambda: "FAILED" in failing.ends("keeper"))
    assert "3 submissions in a row ended without a trial done or pruned" in failing.outputs()
    assert len(failing.arrays()) == 3 and [trial["state"] for trial in failing.trials()] == ["failed"] * 9


def test_real_trials_of_two_outer_folds_are_trained_by_one_array(tmp_path: Path) -> None:
    place = Place(tmp_path, trials=0, pause_s=0.0)
    place.file.write_text(textwrap.dedent(TRAINED))
    synthetic.generate(place.folder / "data" / "synthetic", speakers=4, clips_per_speaker=4, seconds=1.5, size_px=64, folds=2)
    told = place.search("--workers", "4", "--wait")
    assert "submitted 4 workers" in told and told.count("2 of 2 ended") == 2
    assert len(place.arrays()) == 1, "one cap holds for all outer folds"
    root = place.folder / "runs"
    studies = [json.loads((root / "_studies" / f"trained_fold{fold}.json").read_text()) for fold in (1, 2)]
    assert [[trial["state"] for trial in study["search"]["trials"]] for study in studies] == [["done"] * 2] * 2
    records = [RunRecord(root / name) for name in dict.fromkeys(run["run_id"] for study in studies for run in study["runs"])]
    assert [record.state() for record in records] == ["done"] * 5, "one pre-training, four fine-tunings"
    starts = [event for record in records for event in record.events() if event["event"] == "started"]
    assert len(starts) == 5, "the pre-training that all four wanted was trained once"
    commit = studies[0]["snapshot"]["commit"]
    assert commit and records[0].snapshot()["code"]["commit"] == commit


def test_what_a_worker_cannot_use_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path, trials=2, pause_s=0.0, profile="nodes = 2")
    with pytest.raises(AssertionError, match="a search's worker is one process, the profile asks for 2 nodes"):
        place.search()
