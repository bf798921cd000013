"""Trials as runs: recorded ones are read, killed ones go on, poor ones are stopped with a checkpoint and can be promoted.

The runs' program is a stand-in that keeps a real record (judged_run.py); test_search_real.py has the real one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judged_run import top

from experiments import study_file
from experiments.search import Budget, Float, Search, launch, report
from experiments.search import space as spaces
from experiments.search.judge import RunJudge, Stopped
from experiments.search.study import OwnTrial, Row, Study
from experiments.search.worker import Request, folder_of, work
from hicmae import presets
from hicmae.config import run_id
from hicmae.errors import HicmaeError, UsageError
from hicmae.record import RunRecord, read_lines

LR = "finetune.optim.base_lr"
RECIPE = presets.finetune("smoke").optim.base_lr


def print_of(corpus: str) -> str:
    return f"fingerprint of {corpus}"


def command(path: Path) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("judged_run.py")), str(path)]


def searching(**changes: Any) -> Search:
    declared = {
        "name": "judged",
        "title": "Judged",
        "space": {LR: Float(1e-4, 1e-1, log=True)},
        "budget": Budget(trials=6),
        "corpus": "synthetic",
        "size": "smoke",
        "fold": 1,
        "pretrain_corpus": None,
        "base": {"finetune.optim.epochs": 4, "finetune.optim.warmup_epochs": 0},
        "pruner": "NopPruner",
    }
    return Search(**{**declared, **changes})


class Bench:
    """A runs folder with a search in it."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.search = searching(**changes)
        self.root = folder / "runs"
        self.study = Study.open(self.search, folder_of(self.root, self.search), None, self.search.identity(print_of))

    def judge(self, **options: Any) -> RunJudge:
        return RunJudge(self.search, self.study, self.root, print_of, **{"command": command, **options})

    def work(self) -> list[Row]:
        work(self.study, self.judge())
        return self.study.rows()

    def trial(self) -> OwnTrial:
        trial = self.study.claim()
        assert trial is not None
        return trial

    def record(self, params: dict[str, Any], split: int = 0) -> RunRecord:
        """The fine-tuning of a trial with these parameters."""
        runs = self.search.trial_runs(0, spaces.delta(self.search.space, params), split + 1, print_of)
        return RunRecord(self.root / next(run.run_id for run in runs if run.stage == "finetune" and run.seed == split))


def worked(record: RunRecord) -> list[int]:
    return [line["epoch"] for line in read_lines(record.path / "worked.jsonl")]


def test_a_trials_value_is_the_metric_of_its_run_on_the_validation_part(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    rows = bench.work()
    assert [row.state for row in rows] == ["done"] * 6
    for row in rows:
        record = bench.record(row.params)
        assert row.value == pytest.approx(top(row.params[LR])) and row.notes["runs"] == [record.id]
        assert row.reports == pytest.approx({epoch: top(row.params[LR]) * epoch / 4 for epoch in (1, 2, 3, 4)})
        assert run_id(record.config()) == record.id and worked(record) == [1, 2, 3, 4]
        assert row.notes["hours"] > 0
    assert rows[0].params == bench.search.recipe() == {LR: RECIPE}, "the recipe itself comes first"


def test_a_recorded_run_is_read_and_not_run_again(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    values = [row.value for row in first.work()]
    second = Bench(tmp_path, name="another")

    def refuse(path: Path) -> list[str]:
        raise AssertionError(f"{path} was to be run again")

    work(second.study, second.judge(command=refuse))
    assert [row.value for row in second.study.rows()] == values
    assert all(row.notes.get("hours", 0.0) == 0.0 for row in second.study.rows()), "what is read costs nothing"


def test_a_run_that_another_process_executes_is_waited_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, budget=Budget(trials=1))
    record = RunRecord.create(bench.root, bench.search.trial_runs(0, {}, 1, print_of)[0].config)
    other = subprocess.Popen(command(record.path), env={**os.environ, "JUDGED_PAUSE_S": "0.3"})
    while not record.is_locked():
        time.sleep(0.01)
    rows = bench.work()
    assert other.wait() == 0
    assert rows[0].value == pytest.approx(top(RECIPE)) and worked(record) == [1, 2, 3, 4]


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGED_PAUSE_S", "0.1")
    bench = Bench(tmp_path, budget=Budget(trials=1))
    record = RunRecord.create(bench.root, bench.search.trial_runs(0, {}, 1, print_of)[0].config)

    def kill_after_two_epochs() -> None:
        while len(worked(record)) < 2:
            time.sleep(0.005)
        os.kill(next(event["pid"] for event in record.events() if event["event"] == "started"), signal.SIGKILL)

    thread = threading.Thread(target=kill_after_two_epochs)
    thread.start()
    rows = bench.work()
    thread.join()
    assert rows[0].state == "done" and sorted(set(worked(record))) == [1, 2, 3, 4]
    assert len(worked(record)) <= 5, "only an epoch without its checkpoint is worked again"


def test_a_stopped_worker_leaves_a_checkpoint_and_its_trial_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGED_PAUSE_S", "0.2")
    bench = Bench(tmp_path, budget=Budget(trials=1))
    record = bench.record({LR: RECIPE})
    with pytest.raises(Stopped):
        work(bench.study, bench.judge(stopping=lambda: bool(worked(record))))
    assert bench.study.rows()[0].state == "running" and bench.study.rows()[0].notes["runs"] == [record.id]
    assert record.state() == "interrupted" and record.events()[-1]["event"] == "preempted"
    assert bench.work()[0].value == pytest.approx(top(RECIPE))
    assert worked(record) == [1, 2, 3, 4], "nothing was done twice"


DATA_WORKER = """\
import pathlib, subprocess, sys
sys.path.insert(0, {here!r})
import judged_run
path = pathlib.Path(sys.argv[1])
worker = subprocess.Popen(["sleep", "60"])
code = judged_run.main(path)
(path / "worker").write_text(str(worker.poll()))
worker.kill()
sys.exit(code)
"""


def test_a_stop_does_not_reach_the_processes_that_read_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGED_PAUSE_S", "0.2")
    program = tmp_path / "with_worker.py"
    program.write_text(DATA_WORKER.format(here=str(Path(__file__).parent)))
    bench = Bench(tmp_path, budget=Budget(trials=1))
    record = bench.record({LR: RECIPE})
    judge = bench.judge(stopping=lambda: bool(worked(record)), command=lambda path: [sys.executable, str(program), str(path)])
    with pytest.raises(Stopped):
        work(bench.study, judge)
    assert record.events()[-1]["event"] == "preempted"
    assert (record.path / "worker").read_text() == "None"


def poor_after_good(bench: Bench) -> tuple[RunRecord, Row]:
    """One good trial, then a poor one, at values of our choice."""
    for base_lr in (1e-2, 1e-4):
        bench.study._study.enqueue_trial({LR: base_lr})
    rows = bench.work()
    return bench.record({LR: 1e-4}), rows[-1]


def test_a_poor_trial_is_pruned_keeps_its_checkpoint_and_can_be_promoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGED_PAUSE_S", "0.25")
    bench = Bench(
        tmp_path,
        budget=Budget(trials=2),
        recipe_first=False,
        pruner="MedianPruner",
        pruner_options={"n_startup_trials": 1},
        base={"finetune.optim.epochs": 8, "finetune.optim.warmup_epochs": 0},
    )
    record, row = poor_after_good(bench)
    assert row.state == "pruned" and row.value == pytest.approx(row.reports[max(row.reports)])
    assert record.result() is None and record.state() == "interrupted"
    done_before = worked(record)
    assert 1 <= len(done_before) < 8
    bench.study.promote(row.number)
    promoted = bench.work()[-1]
    assert (promoted.state, promoted.params) == ("done", row.params) and promoted.value == pytest.approx(top(1e-4))
    assert worked(record) == list(range(1, 9)), "it went on from its checkpoint"


def test_a_diverged_trial_teaches_the_sampler_and_is_not_tried_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, space={LR: Float(1e-3, 1e1, log=True)}, budget=Budget(trials=2), recipe_first=False)
    for _ in range(2):
        bench.study._study.enqueue_trial({LR: 5.0})
    rows = bench.work()
    assert [row.state for row in rows] == ["pruned", "pruned"]
    assert "loss is nan at step 1" in rows[0].notes["reason"] and "had diverged already" in rows[1].notes["reason"]
    assert sum(event["event"] == "started" for event in bench.record({LR: 5.0}).events()) == 1


def test_failures_in_a_row_end_the_worker_and_name_the_run(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path, base={"finetune.optim.weight_decay": 0.9, "finetune.optim.epochs": 2, "finetune.optim.warmup_epochs": 0}
    )
    with pytest.raises(HicmaeError, match=r"3 trials in a row failed, the last one by: run [0-9a-f]{16}: the disk is full"):
        bench.work()
    assert [row.state for row in bench.study.rows()] == ["failed"] * 3


def test_a_damaged_record_fails_its_trial_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, budget=Budget(trials=2))
    record = bench.record({LR: RECIPE})
    record.path.mkdir(parents=True)
    (record.path / "config.json").write_text("{")
    rows = bench.work()
    assert [row.state for row in rows] == ["failed", "done"] and record.id in rows[0].notes["reason"]


def test_a_pre_training_is_run_once_and_shared(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pretrain_corpus="synthetic", budget=Budget(trials=3))
    rows = bench.work()
    pretrains = {row.notes["runs"][0] for row in rows}
    assert len(pretrains) == 1 and all(len(row.notes["runs"]) == 2 for row in rows)
    assert sum(event["event"] == "started" for event in RunRecord(bench.root / pretrains.pop()).events()) == 1


def test_further_splits_are_run_while_a_trial_is_among_the_best_third(tmp_path: Path) -> None:
    bench = Bench(tmp_path, splits=3, budget=Budget(trials=6), recipe_first=False)
    rates = (1e-2, 1e-4, 2e-4, 9e-3, 3e-4, 1.1e-2)
    for base_lr in rates:
        bench.study._study.enqueue_trial({LR: base_lr})
    rows = bench.work()
    # The first has no rival. 0.009 is second of four on one split, which is in their best third, but second of two on two.
    assert [row.notes["splits"] for row in rows] == [3, 1, 1, 2, 1, 2]
    for row in rows:
        seen = [top(row.params[LR], split) for split in range(row.notes["splits"])]
        assert row.value == pytest.approx(sum(seen) / len(seen)) and row.notes["values"] == pytest.approx(seen)
    best = bench.study.best()
    assert best.notes["splits"] == 3 and best.params[LR] == 1e-2
    places = {trial["number"]: trial["place"] for trial in report.summary(bench.search, rows)["trials"]}
    assert sorted(places, key=lambda number: places[number]) == [0, 5, 3, 4, 2, 1], "more splits first, then the value"


def test_wilcoxons_test_decides_on_splits_where_it_is_asked_for(tmp_path: Path) -> None:
    options = {"p_threshold": 0.3, "n_startup_steps": 0}
    bench = Bench(
        tmp_path, splits=6, budget=Budget(trials=2), recipe_first=False, pruner="WilcoxonPruner", pruner_options=options
    )
    record, poor = poor_after_good(bench)
    good = bench.study.rows()[0]
    assert good.notes["splits"] == 6 and set(good.reports) == set(range(6)), "splits are its steps"
    assert 2 <= poor.notes["splits"] < 6 and poor.state == "done"
    assert worked(record) == [1, 2, 3, 4], "epochs are left to run"


def test_the_study_file_lists_trials_as_variants_with_their_runs(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pretrain_corpus="synthetic", splits=2, budget=Budget(trials=4))
    rows = bench.work()
    report.record(bench.search, bench.study, bench.root, print_of, ("hicmae", "search", "run", "judged"))
    written = study_file.read(bench.root, bench.search.name)
    assert [variant["name"] for variant in written["variants"]] == [f"trial {number:04d}" for number in range(4)]
    assert [variant["columns"] for variant in written["variants"]] == [row.params for row in rows]
    by_trial = {name: [run for run in written["runs"] if name in run["variants"]] for name in written["table"]["rows"]}
    for row, runs in zip(rows, by_trial.values(), strict=True):
        assert [run["run_id"] for run in runs if run["stage"] == "finetune"] == row.notes["runs"][1:]
        assert all((bench.root / run["run_id"] / "result.json").exists() for run in runs)
    assert written["table"]["selection"] == "inner" and written["table"]["metrics"] == ["UAR"]
    assert written["command"] == "hicmae search run judged"
    assert [trial["value"] for trial in written["search"]["trials"]] == [row.value for row in rows]
    created = written["created"]
    report.record(bench.search, bench.study, bench.root, print_of)
    again = study_file.read(bench.root, bench.search.name)
    assert (again["created"], again["command"]) == (created, written["command"])


def test_the_best_is_printed_as_a_preset_that_gives_its_configuration(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pretrain_corpus="synthetic", base={"objective.temperature": 0.05, "finetune.optim.epochs": 6})
    bench.work()
    best = bench.study.best()
    pasted: dict[str, Any] = {}
    exec(report.preset(bench.search, best, "python"), pasted)
    tuning = pasted["judged_finetune"]()
    assert tuning.optim.base_lr == best.params[LR] and tuning.optim.epochs == 6
    assert tuning.evaluation.selection == "last", "the preset is for the test part, not for the search"
    assert pasted["judged_pretrain"]().objective.temperature == 0.05
    written = json.loads(report.preset(bench.search, best, "json"))
    assert written["delta"] == {"objective.temperature": 0.05, "finetune.optim.epochs": 6, LR: best.params[LR]}
    import tomllib

    assert tomllib.loads(report.preset(bench.search, best, "toml"))["judged"] == written["delta"]


def test_what_was_chosen_in_each_outer_fold_runs_on_its_test_part_alone(tmp_path: Path) -> None:
    search = replace(searching(pretrain_corpus="synthetic", base={}), folds=(1, 2), fold=None)
    rows = {fold: Row(0, "done", {LR: rate}, 50.0, {}, {}) for fold, rate in ((1, 1e-3), (2, 5e-3))}
    study = report.best_experiment(search, rows)
    runs = study.runs(print_of)
    tunings = {(run.fold, run.variants): run.config for run in runs if run.stage == "finetune"}
    assert set(tunings) == {(fold, (variant,)) for fold in (1, 2) for variant in ("recipe", "best")}
    for (fold, (variant,)), config in tunings.items():
        chosen = {1: 1e-3, 2: 5e-3}[fold or 0] if variant == "best" else RECIPE
        assert config.optim.base_lr == chosen
        assert config.evaluation.selection == "last"  # type: ignore[union-attr]
    assert runs[0].stage == "pretrain" and len([run for run in runs if run.stage == "pretrain"]) == 1
    assert study.name == "judged_best" and study.table.baseline == "recipe"


def test_what_was_chosen_is_not_run_before_the_budget_is_spent(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    declared = "name='judged', title='', corpus='synthetic', size='smoke', pretrain_corpus=None, folds=(1,), pruner='NopPruner'"
    path.write_text(
        "from experiments.search import Budget, Float, Search\n"
        f"def search(): return Search({declared}, budget=Budget(trials=9), space={{'{LR}': Float(1e-4, 1e-1, log=True)}})\n"
    )
    bench = Bench(tmp_path, name="judged_fold1", budget=Budget(trials=3), base={})
    request = Request(str(path), bench.root)
    bench.work()
    with pytest.raises(UsageError, match=r"judged_fold1: its budget is not spent yet; run `hicmae search run"):
        launch.best_of(request)
    bench.study.keep_budget()  # as a launch with --trials 3 does
    chosen = launch.best_of(request)
    assert isinstance(chosen, report.NestedExperiment) and chosen.name == "judged_best"
    assert chosen.deltas == {1: bench.study.best().params}
