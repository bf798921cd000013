"""The plan: states, what is to do, what is shared, what changed since the last launch, and what it will cost."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from experiments import cost, experiment, render, study_file
from experiments.cost import Costs
from experiments.experiment import Experiment, Run, Variant
from experiments.plan import Plan, make_plan
from hicmae import presets
from hicmae.config import change, to_dict
from hicmae.record import RunRecord
from slurm.state import read_states

EPOCHS = presets.finetune("smoke").optim.epochs


def prints(_: str) -> str:
    return "x"


def small(**fields: Any) -> Experiment:
    base = {"corpora": ("synthetic",), "folds": (1, 2), "size": "smoke", "pretrain_corpus": "synthetic"}
    variants = (Variant("on"), Variant("off", {"head.feature_fusion": "last"}))
    return Experiment(**{"name": "small", "title": "Small", "variants": variants, **base, **fields})


def plan_of(study: Experiment, root: Path, recorded: dict[str, Any] | None = None) -> Plan:
    runs = study.runs(prints)
    return make_plan(study, runs, runs, root, recorded, {})


def launched(study: Experiment, root: Path) -> list[Run]:
    """Record the study as a launch does, without executing anything."""
    runs = study.runs(prints)
    study_file.write(root, study, runs, {"synthetic": "x"}, ["hicmae", "launch", "small"], {})
    for run in runs:
        RunRecord.create(root, run.config).append_event("planned")
    return runs


def finish(root: Path, run: Run, **result: Any) -> None:
    RunRecord.create(root, run.config).finish({"wall_s": 10.0, "cpu_hours": 0.01, **result})


def text_of(plan: Plan, graph: bool = True) -> str:
    console = Console(width=120, record=True, force_terminal=False)
    with console.capture() as captured:
        render.show_plan(console, plan, graph)
    return captured.get()


def test_everything_is_to_do_at_first_and_nothing_when_all_is_done(tmp_path: Path) -> None:
    plan = plan_of(small(), tmp_path)
    assert plan.counts() == {"pretrain": {"new": 1}, "finetune": {"new": 4}}
    assert len(plan.to_do) == 5
    for run in plan.runs:
        finish(tmp_path, run)
    assert plan_of(small(), tmp_path).to_do == []


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.sampled_from(["new", "planned", "failed", "blocked", "cancelled", "interrupted", "submitted", "done"]),
        min_size=5,
        max_size=5,
    )
)
def test_reconciling_sorts_every_run_into_exactly_one_place(tmp_path_factory: pytest.TempPathFactory, states: list[str]) -> None:
    root = tmp_path_factory.mktemp("runs")
    runs = small().runs(prints)
    events = {"interrupted": "preempted"}
    for run, state in zip(runs, states, strict=True):
        if state == "done":
            finish(root, run)
        elif state != "new":
            RunRecord.create(root, run.config).append_event(events.get(state, state))
    plan = plan_of(small(), root)
    assert [plan.state(run) for run in runs] == states
    done = [run for run in runs if plan.state(run) == "done"]
    assert sorted(run.run_id for run in [*plan.to_do, *plan.active, *done]) == sorted(run.run_id for run in runs)
    assert all(plan.state(run) == "submitted" for run in plan.active)


def test_a_run_that_somebody_works_on_is_not_to_do(tmp_path: Path) -> None:
    run = launched(small(), tmp_path)[0]
    record = RunRecord(tmp_path / run.run_id)
    record.append_event("started", host=socket.gethostname(), pid=1)
    code = "import sys, time; from hicmae.record import RunRecord; from pathlib import Path\n"
    code += "with RunRecord(Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(record.path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    plan = plan_of(small(), tmp_path)
    holder.kill()
    holder.wait()
    assert [active.run_id for active in plan.active] == [run.run_id]
    assert run.run_id not in {other.run_id for other in plan.to_do}


def test_a_run_on_a_machine_that_fell_silent_is_unknown_not_dead(tmp_path: Path) -> None:
    run = launched(small(), tmp_path)[0]
    record = RunRecord(tmp_path / run.run_id)
    record.append_event("started", host="another-machine", pid=1)
    assert read_states(tmp_path, [run.run_id])[run.run_id].state == "running"
    for file in record.path.glob("*.jsonl"):
        long_ago = time.time() - 3600
        os.utime(file, (long_ago, long_ago))
    state = read_states(tmp_path, [run.run_id])[run.run_id]
    assert state.state == "unknown"
    assert state.reason.startswith("another-machine has written nothing for 60 min; if it is dead, `hicmae cancel ")
    assert state.is_active


def test_what_changed_since_the_last_launch_is_told_field_by_field(tmp_path: Path) -> None:
    launched(small(), tmp_path)
    changed = small(
        variants=(Variant("on", {"finetune.optim.epochs": EPOCHS + 4}), Variant("off", {"head.feature_fusion": "last"}))
    )
    plan = plan_of(changed, tmp_path, study_file.read(tmp_path, "small"))
    (only,) = plan.changes
    assert dict(only.fields) == {"optim.epochs": (EPOCHS, EPOCHS + 4)}
    assert len(only.run_ids) == 2
    assert len(plan.orphans) == 2
    told = text_of(plan)
    assert f"optim.epochs: {EPOCHS} → {EPOCHS + 4}" in told
    assert "2 recorded runs no longer belong to the study" in told


def test_an_unchanged_study_has_no_changes(tmp_path: Path) -> None:
    launched(small(), tmp_path)
    plan = plan_of(small(), tmp_path, study_file.read(tmp_path, "small"))
    assert plan.changes == ()
    assert plan.orphans == ()


def test_a_damaged_old_configuration_does_not_hide_the_change(tmp_path: Path) -> None:
    old = launched(small(), tmp_path)[0]
    (tmp_path / old.run_id / "config.json").write_text("{")
    plan = plan_of(
        small(variants=(Variant("on", {"pretrain.optim.weight_decay": 0.1}),)), tmp_path, study_file.read(tmp_path, "small")
    )
    assert any("cannot be read" in field for change in plan.changes for field in change.fields)


def test_cost_comes_from_recorded_runs_of_the_same_shape_else_from_flops(tmp_path: Path) -> None:
    runs = small().runs(prints)
    guess = plan_of(small(), tmp_path).cost()
    assert not guess.measured
    assert "estimate from FLOPs" in text_of(plan_of(small(), tmp_path))
    finish(tmp_path, runs[0], wall_s=10.0, cpu_hours=0.01)
    finish(tmp_path, runs[1], wall_s=36.0, cpu_hours=0.02)
    plan = plan_of(small(), tmp_path)
    same_shape = [run for run in plan.to_do if cost.shape_of(run.config) == cost.shape_of(runs[1].config)]
    assert len(same_shape) == 1
    assert plan.costs.of(same_shape[0]) == cost.Cost(0.02, cost.disk(runs[1].config), 1, 36.0)
    assert "of core time (1 run from recorded ones of the same shape, 2 a rough estimate from FLOPs" in text_of(plan)
    finish(tmp_path, next(run for run in runs if "off" in run.variants and run.stage == "finetune"))
    assert plan_of(small(), tmp_path).cost().measured == 2
    assert "of core time (from recorded runs of the same shape)" in text_of(plan_of(small(), tmp_path))


def test_any_study_s_runs_of_the_shape_tell_what_others_will_take_but_not_those_of_other_devices(tmp_path: Path) -> None:
    """Recorded once more after a change, a run is read again; before that, what it took stands in the cache."""
    (run,) = small(name="another", folds=(2,), variants=(Variant("off"),), seeds=(7,), pretrain_corpus=None).runs(prints)
    finish(tmp_path, run, wall_s=50.0, cpu_hours=0.5, gpu_hours=0.0)
    study = small(pretrain_corpus=None, variants=(Variant("on"),))
    costs = [Costs(tmp_path, "cpu").of(one) for one in study.runs(prints)]
    assert [(one.hours, one.wall_s, one.measured) for one in costs] == [(0.5, 50.0, 1)] * 2
    (tmp_path / run.run_id / "config.json").write_text("{")  # not read again
    assert Costs(tmp_path, "cpu").of(study.runs(prints)[0]) == costs[0]
    assert Costs(tmp_path, "gpu").of(study.runs(prints)[0]).measured == 0
    RunRecord.create(tmp_path, run.config).finish({"wall_s": 9.0, "gpu_hours": 0.25})
    (tmp_path / run.run_id / "config.json").write_text(json.dumps(to_dict(run.config)))
    assert Costs(tmp_path, "gpu").of(study.runs(prints)[0]).hours == 0.25
    assert Costs(tmp_path, "cpu").of(study.runs(prints)[0]).measured == 0


def test_launches_for_other_corpora_seeds_and_sizes_are_remembered(tmp_path: Path) -> None:
    """What a study's own change replaces is not."""
    first = launched(small(), tmp_path)
    other = launched(small(seeds=(5,), size="tiny"), tmp_path)
    third = launched(small(seeds=(6,)), tmp_path)
    study = study_file.read(tmp_path, "small")
    assert {row["run_id"] for row in study["runs"]} == {run.run_id for run in third}
    assert {row["run_id"] for row in study_file.rows(study)} == {run.run_id for run in (*first, *other, *third)}
    changed = small(variants=(Variant("on", {"finetune.optim.epochs": EPOCHS + 4}),), seeds=(6,))
    plan = plan_of(changed, tmp_path, study)
    of_seed_6 = {run.run_id for run in third if run.stage == "finetune"}
    gone = {run.run_id for run in (*first, *third) if run.stage == "finetune" and "off" in run.variants}
    assert set(plan.orphans) == of_seed_6 | gone
    launched(changed, tmp_path)
    study = study_file.read(tmp_path, "small")
    assert not set(plan.orphans) & {row["run_id"] for row in study_file.rows(study)}
    back = plan_of(small(), tmp_path, study)
    assert {run.run_id for run in back.runs} >= {row["run_id"] for row in study["earlier"] if row["size"] == "smoke"}


def test_a_damaged_study_file_is_written_anew_by_a_launch(tmp_path: Path) -> None:
    launched(small(), tmp_path)
    study_file.path_of(tmp_path, "small").write_text("{")
    launched(small(), tmp_path)
    assert len(study_file.read(tmp_path, "small")["runs"]) == 5


def test_parameters_and_flops_are_close_to_the_published_ones() -> None:
    """20.5, 45.7 and 80.8 million after fine-tuning; without embeddings and heads a little less."""
    for size, millions in {"tiny": 20.5, "small": 45.7, "base": 80.8}.items():
        assert cost.parameters(presets.finetune(size)) / 1e6 == pytest.approx(millions, rel=0.04)
    short = presets.pretrain("smoke", "synthetic")
    long = change(short, {"optim.epochs": 2 * short.optim.epochs})
    assert cost.flops(long) == pytest.approx(2 * cost.flops(short))


def test_the_graph_and_the_counts_are_shown(tmp_path: Path) -> None:
    study = experiment.find("ablation_hierarchical").at_smoke_size()
    told = text_of(plan_of(study, tmp_path))
    assert "8 variants; corpus synthetic" in told
    assert "4 pretrain runs serve several variants: 4 runs saved" in told
    assert told.count("pretrain synthetic") == 4
    assert "skips + contrast + fusion" in told


def test_names_are_text_not_markup(tmp_path: Path) -> None:
    odd = "[red]50% & \\input{x}[/red]"
    told = text_of(plan_of(small(variants=(Variant(odd),)), tmp_path))
    assert odd in told


def test_json_tells_what_the_terminal_does(tmp_path: Path) -> None:
    runs = launched(small(), tmp_path)
    finish(tmp_path, runs[0])
    plan = plan_of(small(), tmp_path, study_file.read(tmp_path, "small"))
    values = json.loads(json.dumps(plan.to_json()))
    assert values["counts"] == {"pretrain": {"done": 1}, "finetune": {"planned": 4}}
    assert values["to_do"] == [run.run_id for run in runs[1:]]
    assert [run["run_id"] for run in values["runs"]] == [run.run_id for run in runs]
    assert values["unit"] in ("core-hours", "GPU-hours")
    assert values["hours_from"] == {"recorded runs": 0, "FLOPs": 4}


def test_a_thousand_runs_are_planned_without_reading_more_than_their_directories(tmp_path: Path) -> None:
    """Planned and half of them done; the time is printed by the benchmark, never asserted here."""
    study = replace(small(), seeds=tuple(range(250)))
    runs = study.runs(prints)
    assert len(runs) == 1001
    for run in runs[::2]:
        finish(tmp_path, run)
    plan = plan_of(study, tmp_path)
    assert len(plan.to_do) == 500


def test_the_study_file_is_what_readers_expect(tmp_path: Path) -> None:
    runs = launched(small(), tmp_path)
    study = json.loads((tmp_path / "_studies" / "small.json").read_text())
    assert study["experiment"] == "small"
    assert study["smoke"] is True
    assert study["command"] == "hicmae launch small"
    assert [variant["name"] for variant in study["variants"]] == ["on", "off"]
    assert study["runs"][0] == {
        "run_id": runs[0].run_id,
        "stage": "pretrain",
        "variants": ["on", "off"],
        "corpus": "synthetic",
        "fold": None,
        "seed": 0,
        "depends_on": [],
    }
    assert study["runs"][1]["depends_on"] == [runs[0].run_id]
