"""How long recorded runs took: what their files tell, as soon as they can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import durations
from experiments.durations import Took, shape_of
from hicmae import presets
from hicmae.config import change
from hicmae.record import RunRecord, write_json


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "runs"


def finished(runs: Path, seed: int, **result: float) -> RunRecord:
    record = RunRecord.create(runs, change(presets.pretrain("smoke", "synthetic"), {"seed": seed}))
    write_json(record.path / "result.json", {"status": "done", **result})
    return record


def test_runs_of_other_seeds_have_the_same_shape_and_gpus_count_before_cores(runs: Path) -> None:
    shape = shape_of(finished(runs, 0, wall_s=20.0, cpu_hours=0.5, gpu_hours=0.0).config())
    finished(runs, 1, wall_s=10.0, cpu_hours=0.4, gpu_hours=2.0)
    found = sorted(durations.recorded(runs), key=lambda took: took.device)
    assert found == [Took(shape, "cpu", 0.5, 20.0), Took(shape, "gpu", 2.0, 10.0)]


def test_a_file_that_could_not_be_read_once_is_read_again(runs: Path) -> None:
    config = finished(runs, 0, wall_s=20.0, cpu_hours=0.5).path / "config.json"
    config.rename(config.with_name("elsewhere.json"))
    assert list(durations.recorded(runs)) == []
    config.with_name("elsewhere.json").rename(config)
    assert [took.wall_s for took in durations.recorded(runs)] == [20.0]


def test_what_is_known_is_not_read_again(runs: Path) -> None:
    record = finished(runs, 0, wall_s=20.0, cpu_hours=0.5)
    (known,) = durations.recorded(runs)
    (record.path / "config.json").unlink()
    assert list(durations.recorded(runs)) == [known]
