"""The record of a run: whole after any kill, readable while it grows, and the only source of a run's state."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hicmae import presets
from hicmae.config import change, run_id
from hicmae.errors import RecordError
from hicmae.record import STATES, RunRecord, append_line, read_lines, write_json

CONFIG = presets.pretrain("smoke", "synthetic")


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return RunRecord.create(tmp_path, CONFIG)


def test_a_new_record_holds_its_configuration_under_its_id(record: RunRecord) -> None:
    assert record.id == run_id(CONFIG)
    assert record.config() == CONFIG
    assert record.state() == "new"
    assert record.result() is None
    assert record.snapshot() == {}


def test_making_a_record_again_changes_nothing(record: RunRecord) -> None:
    before = (record.path / "config.json").stat().st_mtime_ns
    record.append_event("planned")
    again = RunRecord.create(record.path.parent, CONFIG)
    assert (again.path / "config.json").stat().st_mtime_ns == before
    assert again.state() == "planned"


@pytest.mark.parametrize(
    ("events", "state"),
    [
        (["planned"], "planned"),
        (["planned", "submitted"], "submitted"),
        (["planned", "started"], "interrupted"),
        (["planned", "started", "checkpoint", "preempted"], "interrupted"),
        (["planned", "started", "failed"], "failed"),
        (["planned", "started", "failed", "planned"], "planned"),
        (["planned", "blocked"], "blocked"),
        (["planned", "cancelled"], "cancelled"),
        (["planned", "started", "an event of a later version"], "interrupted"),
    ],
)
def test_the_state_follows_the_last_event(record: RunRecord, events: list[str], state: str) -> None:
    for event in events:
        record.append_event(event)
    assert record.state() == state
    assert state in STATES


def test_a_started_run_is_running_exactly_while_a_process_holds_its_lock(record: RunRecord) -> None:
    code = "import sys, time; from hicmae.record import RunRecord; from pathlib import Path\n"
    code += "with RunRecord(Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(60)"
    record.append_event("started")
    holder = subprocess.Popen([sys.executable, "-c", code, str(record.path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    assert record.state() == "running"
    holder.kill()
    holder.wait()
    assert record.state() == "interrupted"


def test_done_means_that_the_result_is_there(record: RunRecord) -> None:
    record.finish({"metrics": {"last": {"UAR": 50.0}}})
    record.append_event("failed", reason="written by a late process")
    assert record.state() == "done"
    assert record.result() == {"run_id": record.id, "metrics": {"last": {"UAR": 50.0}}}


def test_a_point_logged_again_after_a_resume_counts_once(record: RunRecord) -> None:
    for step, loss in [(1, 3.0), (2, 2.0), (3, 1.0), (2, 2.5), (3, 1.5)]:
        record.append_metrics("train", step, step / 10, {"loss": loss})
    record.append_metrics("test", 3, 0.3, {"UAR": 60.0})
    points = [(line["split"], line["step"], line["values"]) for line in record.metrics()]
    assert points == [
        ("train", 1, {"loss": 3.0}),
        ("train", 2, {"loss": 2.5}),
        ("train", 3, {"loss": 1.5}),
        ("test", 3, {"UAR": 60.0}),
    ]


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 6))
def test_a_file_cut_anywhere_loses_at_most_its_last_line(tmp_path_factory: pytest.TempPathFactory, cut: int, lines: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "events.jsonl"
    for number in range(lines):
        append_line(path, {"number": number, "text": "ä" * number})
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    survivors = [line["number"] for line in read_lines(path)]
    complete = whole[: max(0, len(whole) - cut)].count(b"\n")
    assert survivors[:complete] == list(range(complete))
    append_line(path, {"number": "after"})
    assert [line["number"] for line in read_lines(path)] == [*survivors, "after"]


def test_a_process_killed_while_writing_leaves_whole_files(tmp_path: Path) -> None:
    """JSON files are replaced whole: whatever moment the kill hits, an old or a new one is there."""
    path = tmp_path / "result.json"
    write_json(path, {"number": 0, "pad": ""})
    code = "import sys; from pathlib import Path; from hicmae.record import write_json\n"
    code += "for n in range(10**9): write_json(Path(sys.argv[1]), {'number': n, 'pad': 'x' * 100_000})"
    for wait_s in (0.05, 0.1, 0.15):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
        while json.loads(path.read_text())["pad"] == "":
            time.sleep(0.005)
        time.sleep(wait_s)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        assert json.loads(path.read_text())["pad"] == "x" * 100_000


def test_values_that_json_does_not_know_are_refused_and_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"loss": 1.0}
    assert [item.name for item in tmp_path.iterdir()] == ["result.json"]


def test_damage_is_told_with_the_file(record: RunRecord) -> None:
    (record.path / "result.json").write_text('{"metrics": ')
    with pytest.raises(RecordError, match=r"result\.json: unreadable"):
        record.result()
    edited = {**json.loads((record.path / "config.json").read_text()), "seed": 99}
    write_json(record.path / "config.json", edited)
    with pytest.raises(RecordError, match="does not hash to"):
        record.config()
    write_json(record.path / "config.json", {**edited, "optim": {**edited["optim"], "betas": [1.0, 2.0]}})
    with pytest.raises(RecordError, match=r"config\.json: OptimConfig\.betas = "):  # as a version may refuse what an older took
        record.config()
    with pytest.raises(RecordError, match="missing"):
        RunRecord(record.path.parent / "0000000000000000").config()


def test_two_configurations_have_two_directories(tmp_path: Path) -> None:
    RunRecord.create(tmp_path, CONFIG)
    RunRecord.create(tmp_path, change(CONFIG, {"seed": 1}))
    assert len(list(tmp_path.iterdir())) == 2
