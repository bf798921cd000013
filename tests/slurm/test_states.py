"""What SLURM's words about a job mean for its run, and how its listings are read; the listings themselves are real ones."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hicmae import presets
from hicmae.config import InitialWeights, change
from hicmae.record import RunRecord
from slurm import dispatch, scheduler
from slurm.arrays import Array
from slurm.dispatch import Target, _beside, _lane
from slurm.local import Job
from slurm.profiles import Profile
from slurm.scheduler import JobInfo, _parsed
from slurm.state import RunState, Submission, judge

LISTING = """\
1200_7|study-finetune-0a1b|RUNNING|None|node1
1200_[8-10,12%2]|study-finetune-0a1b|PENDING|Dependency|None assigned
1199_0|study-pretrain-9f8e|CANCELLED by 1000|None|None assigned
1198|other|COMPLETED|None|node2
"""


def test_listings_of_arrays_are_read_task_by_task() -> None:
    found = dict(_parsed(LISTING))
    assert found["study-finetune-0a1b", 7] == JobInfo("1200_7", "RUNNING", "", "node1")
    assert [index for name, index in found if name == "study-finetune-0a1b"] == [7, 8, 9, 10, 12]
    assert found["study-finetune-0a1b", 12] == JobInfo("1200_12", "PENDING", "Dependency", "")
    assert found["study-pretrain-9f8e", 0].state == "CANCELLED"
    assert not [name for name, _ in found if name == "other"]


@pytest.mark.parametrize(
    ("said", "started", "state", "reason"),
    [
        ("PENDING", False, "submitted", "waits: Priority"),
        ("REQUEUED", True, "submitted", "waits: Priority"),
        ("RUNNING", True, "running", "on node1"),
        ("COMPLETING", True, "running", "on node1"),
        ("TIMEOUT", True, "interrupted", "reached the time limit"),
        ("PREEMPTED", True, "interrupted", "preempted"),
        ("NODE_FAIL", True, "interrupted", "its node failed"),
        ("OUT_OF_MEMORY", True, "interrupted", "out of memory"),
        ("CANCELLED", True, "cancelled", "cancelled in the scheduler"),
        ("CANCELLED", False, "blocked", "needs 0123456789abcdef, which is not done"),
        ("COMPLETED", True, "interrupted", "the last words"),
        ("FAILED", True, "failed", "the last words"),
        ("A_WORD_OF_A_LATER_VERSION", True, "failed", "the last words"),
    ],
)
def test_every_end_has_its_meaning(tmp_path: Path, said: str, started: bool, state: str, reason: str) -> None:
    config = change(presets.finetune("smoke", "synthetic", 4), {"initial": InitialWeights("run", "0123456789abcdef")})
    record = RunRecord.create(tmp_path, config)
    (record.path / "log" / "attempt-1.log").write_text("first\nthe last words\n\n")
    info = JobInfo("12_3", said, "Priority" if said in ("PENDING", "REQUEUED") else "", "node1")
    found = judge(record.path, RunState(record.id, "interrupted"), Submission("a", 3, time.time(), started), info)
    assert (found.state, found.reason, found.job) == (state, reason, "12_3")


def test_a_job_that_is_not_listed_is_unknown_at_first(tmp_path: Path) -> None:
    record = RunRecord.create(tmp_path, presets.pretrain("smoke", "synthetic"))
    young, old = (Submission("a", 0, time.time() - age_s, False) for age_s in (5, 5000))
    state = RunState(record.id, "submitted")
    assert judge(record.path, state, young, None).state == "unknown"
    assert judge(record.path, state, old, None).state == "planned"
    assert judge(record.path, state, Submission("a", 0, 0.0, True), None).state == "interrupted"


def test_a_job_that_the_scheduler_forgot_or_dropped_is_planned_again(tmp_path: Path) -> None:
    """Nobody cancelled it: what it waited for was gone, or the controller came back without it."""
    record = RunRecord.create(tmp_path, presets.finetune("smoke", "synthetic", 4))
    (tmp_path / "_slurm" / "a").mkdir(parents=True)
    (tmp_path / "_slurm" / "a" / "job.json").write_text('{"job_id": "12"}')
    state, waiting = RunState(record.id, "submitted"), Submission("a", 3, 0.0, False)
    assert judge(record.path, state, waiting, None).state == "planned"
    dropped = JobInfo("12_3", "CANCELLED", "DependencyNeverSatisfied", "")
    assert judge(record.path, state, waiting, dropped).state == "planned"
    assert judge(record.path, state, waiting, JobInfo("12_3", "CANCELLED", "", "")).state == "cancelled"


@pytest.mark.parametrize(("count", "cap"), [(1, 4), (3, 4), (4, 4), (5, 2), (7, 3), (2, 1)])
def test_a_cap_holds_over_all_arrays(count: int, cap: int) -> None:
    """Arrays of one lane follow each other, so at most one array of each lane runs."""
    lanes = [_lane(number, count, cap) for number in range(count)]
    at_once = [share for share, after in lanes if not after]
    assert sum(at_once) <= cap
    assert all(share >= 1 for share, _ in lanes)
    assert all(lanes[number - after][0] == share for number, (share, after) in enumerate(lanes) if after)


@pytest.mark.parametrize(
    ("cap", "busy", "left", "in_turn"), [(64, 4, 60, False), (8, 4, 4, False), (5, 4, 5, True), (1, 3, 1, True), (2, 0, 2, False)]
)
def test_a_cap_holds_over_both_stages(cap: int, busy: int, left: int, in_turn: bool) -> None:
    """What runs beside pre-trainings has what they leave of the cap; what goes after them has all of it."""
    assert _beside(cap, busy) == (left, in_turn)


@pytest.mark.parametrize(
    ("cap", "shares", "ends"), [(2, [2, 2], ["", "afterany:1"]), (8, [8, 5], ["", ""]), (None, [10**6] * 2, ["", ""])]
)
def test_fine_tunings_do_not_add_a_cap_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: int | None, shares: list[int], ends: list[str]
) -> None:
    """Three pre-trainings are to be done; the fine-tunings are of another one, which is done, and could start at once."""
    sent: list[tuple[str, int]] = []

    def sbatch(array: Array, target: Target, profile: Profile, dependency: str, share: int) -> str:
        sent.append((dependency, share))
        return str(len(sent))

    monkeypatch.setattr(dispatch, "_sbatch", sbatch)
    monkeypatch.setattr(scheduler, "max_array_size", lambda: 1000)
    records = [RunRecord.create(tmp_path, change(presets.pretrain("smoke", "synthetic"), {"seed": seed})) for seed in range(4)]
    records[3].finish({"metrics": {}})
    tunings = [RunRecord.create(tmp_path, change(presets.finetune("smoke", "synthetic", 4), {"seed": seed})) for seed in range(9)]
    jobs = [Job(record.id, record.path, stage="pretrain") for record in records[:3]]
    jobs += [Job(record.id, record.path, stage="finetune", depends_on=(records[3].id,)) for record in tunings]
    both = {"pretrain": Profile(max_parallel=cap), "finetune": Profile(max_parallel=cap)}
    dispatch.submit(tmp_path, jobs, Target(both, tmp_path, "study", {}))
    assert sent == list(zip(ends, shares, strict=True))


def test_without_a_cap_nothing_waits() -> None:
    assert [after for _, after in (_lane(number, 9, None) for number in range(9))] == [0] * 9
