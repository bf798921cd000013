"""`hicmae bench launch` at a small size on the testbed: every run done once, whoever is killed meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from experiments import bench_launch
from hicmae.record import RunRecord
from slurm.testbed.cluster import Cluster

pytestmark = [
    pytest.mark.system("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd"),
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm launches"),
]


def test_no_run_is_lost_or_done_twice_while_launchers_are_killed(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher alone: after the controller was killed SLURM needs minutes to let go of jobs that have ended."""
    monkeypatch.setattr(bench_launch, "REST_S", (0.3, 2.0))
    monkeypatch.setattr(bench_launch, "WHO", ("launcher",))
    result = bench_launch.Bench(tmp_path, cluster, 24, 1, Console()).measure(limit_s=240)
    chaos = result["killed at random"]
    assert [chaos[name] for name in ("done", "lost", "done twice")] == [24, 0, 0]
    assert chaos["launchers killed"] >= 2
    assert chaos["launchers that failed"] == 0
    assert result["submitted"]["sbatch"] == 5
    assert [result["launched again while all wait"].get(name, 0) for name in ("squeue", "sbatch", "sacct")] == [1, 0, 0]
    assert not set(bench_launch.COMMANDS) & set(result["launched again when all is done"])
    table = bench_launch.table(result)
    assert table.row_count > len(chaos)


def test_a_verdict_counts_what_the_records_say(tmp_path: Path) -> None:
    """A loss and a double execution are found, so that the other test could fail."""
    (tmp_path / "runs" / "_studies").mkdir(parents=True)
    rows = [{"run_id": name} for name in ("a", "b", "c")]
    study = {"runs": rows, "variants": []}
    (tmp_path / "runs" / "_studies" / "many.json").write_text(json.dumps(study))
    for name, kinds in {"a": ["started", "finished"], "b": ["started", "finished", "started"], "c": ["started"]}.items():
        record = RunRecord(tmp_path / "runs" / name)
        record.path.mkdir()
        for kind in kinds:
            record.append_event(kind)
        if "finished" in kinds:
            (record.path / "result.json").write_text("{}")
    assert bench_launch.verdict(tmp_path / "runs") == {
        "done": 2, "lost": 1, "done twice": 1, "attempts": 4, "runs submitted": 0,
    }  # fmt: skip
