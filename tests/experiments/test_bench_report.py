"""`hicmae bench report`: what it writes and times are real records."""

from __future__ import annotations

from pathlib import Path

from experiments.bench_report import NAME, Size, measure, write_records
from reports.query import load_study


def test_records_are_sound_and_every_step_is_measured(tmp_path: Path) -> None:
    size = Size(corpora=1, variants=2, seeds=1, samples=20)
    study = load_study(write_records(tmp_path, size), NAME)
    assert study.problems == () and len(study.runs) == size.runs == 10
    result = measure(size)
    assert [case["name"] for case in result["cases"]] == ["first reading", "second reading", "tables and statistics"]
    assert all(case["wall_s"] > 0 and case["records_per_s"] > 0 for case in result["cases"]) and result["runs"] == 10
