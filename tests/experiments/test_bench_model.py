"""The benchmark of models really takes steps, writes what it measured, and compares two files. No test asserts on a clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from experiments import bench_steps, bench_tables
from experiments.bench_model import measure, measure_case, measure_change, settings_for
from experiments.bench_steps import (
    ALL_FEATURES,
    ALL_PATCHES,
    CHANGES,
    CHECKPOINTING,
    PLAIN_ATTENTION,
    TWO_HALVES,
    Case,
    changes_for,
    step_of,
)
from hicmae.errors import RecordError, UsageError

CPU = torch.device("cpu")


def text(table: Any) -> str:
    console = Console(width=120)
    with console.capture() as caught:
        console.print(table)
    return caught.get()


@pytest.mark.slow
def test_a_measurement_has_every_case_and_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = (ALL_FEATURES, CHECKPOINTING, "DeepSpeed, ZeRO 3")  # of each kind; all take one way through the code
    assert set(some) < set(CHANGES)
    monkeypatch.setattr(bench_steps, "CHANGES", some)
    shown: list[tuple[int, int, str]] = []
    settings = settings_for(CPU, sizes=["smoke"], stages=["pretrain"], batches=[4])
    result = measure(settings, 1, True, lambda *state: shown.append(state))
    (case,) = result["cases"]
    assert case["clips_per_s"] == pytest.approx(4 / case["step_s"])
    assert case["tflops_per_s"] > 0
    assert case["share_of_peak"] is None
    assert case["peak_memory_gb"] > 0.1
    assert [row["change"] for row in result["changes"]] == list(some)
    assert not any("error" in row for row in result["changes"])
    assert all(row["changed_memory_gb"] > 0 and row["times_the_memory"] > 0 for row in result["changes"])
    assert [done for done, _, _ in shown] == list(range(len(some) + 2))
    assert result["machine"]["gpu_measured"] is False
    bench_tables.write(result, tmp_path / "new" / "bench.json")
    assert bench_tables.read(tmp_path / "new" / "bench.json") == json.loads(json.dumps(result))
    printed = "".join(text(table) for table in bench_tables.tables(result))
    assert "no GPU measured" in printed
    assert "DeepSpeed, ZeRO 3" in printed


def test_what_cannot_run_here_is_said_and_the_rest_goes_on() -> None:
    settings = settings_for(CPU, sizes=["smoke"], stages=["finetune"], batches=[2], attentions=["cudnn", "math"])
    result = measure(settings, 1, False, lambda *_: None)
    assert ["error" in case for case in result["cases"]] == [True, False]
    assert "cannot run" in text(bench_tables.tables(result)[0])


def test_a_missing_compiler_is_an_error_of_its_case_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    compiled = Case("finetune", "smoke", 2, compiled=True)
    assert "needs a C++ compiler" in measure_case(compiled, CPU, 1)["error"]
    assert "needs a C++ compiler" in measure_change(compiled, PLAIN_ATTENTION, CPU, 1)["error"]


@pytest.mark.parametrize("change", [PLAIN_ATTENTION, ALL_PATCHES, ALL_FEATURES])
def test_a_changed_step_computes_the_same_update(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the release does is another way to the same numbers, so it is fair to time it."""
    built: list[torch.nn.Module] = []
    build = bench_steps.build_model
    monkeypatch.setattr(bench_steps, "build_model", lambda config: built.append(build(config)) or built[-1])
    for name in ("", change):
        torch.manual_seed(1)  # of the random tensors
        step_of(Case("pretrain", "smoke", 2), CPU, name)()
    own, other = ({n.replace("embed.embed", "embed"): p for n, p in m.named_parameters()} for m in built)
    assert own.keys() == other.keys()
    start = build(bench_steps._config(Case("pretrain", "smoke", 2), "")).state_dict()
    moved = torch.cat([(own[name] - start[name]).abs().flatten() for name in own])
    apart = torch.cat([(own[name] - other[name]).abs().flatten() for name in own])
    assert moved.mean() > 5e-5
    assert apart.mean() < 1e-3 * moved.mean()


def test_changes_that_mean_nothing_for_a_case_are_left_out() -> None:
    assert not {ALL_PATCHES, ALL_FEATURES} & set(changes_for(Case("finetune", "smoke", 4)))
    assert TWO_HALVES not in changes_for(Case("pretrain", "smoke", 2))
    assert changes_for(Case("pretrain", "smoke", 4)) == list(CHANGES)
    assert TWO_HALVES in changes_for(Case("finetune", "smoke", 2))
    assert TWO_HALVES not in changes_for(Case("finetune", "smoke", 3))
    step_of(Case("finetune", "smoke", 2), CPU, TWO_HALVES)()


def test_the_memory_of_a_change_is_its_own() -> None:
    """AdamW's moments, the weights and their gradients are in it; activation checkpointing and larger batches show."""
    small, large = (measure_change(Case("finetune", "smoke", batch), CHECKPOINTING, CPU, 1) for batch in (4, 48))
    assert large["memory_gb"] > small["memory_gb"] > 0
    assert large["times_the_memory"] < 0.95


def test_defaults_fit_the_device() -> None:
    assert [(c.stage, c.size, c.batch, c.precision) for c in settings_for(CPU).cases] == [
        ("pretrain", "base", 4, "fp32"),
        ("finetune", "base", 2, "fp32"),
    ]
    cuda = settings_for(torch.device("cuda")).cases
    assert {(c.stage, c.batch) for c in cuda} == {("pretrain", 160), ("finetune", 56)}
    assert {(c.size, c.compiled) for c in cuda} == {(size, mode) for size in ("tiny", "small", "base") for mode in (False, True)}


def case(speed: float, **changes: Any) -> dict[str, Any]:
    keys = {"stage": "pretrain", "size": "base", "batch": 4, "precision": "fp32", "attention": "auto", "compiled": False}
    return {**keys, "clips_per_s": speed, "peak_memory_gb": 2.0, **changes}


def test_a_comparison_pairs_equal_cases() -> None:
    machine = {"device": "a processor"}
    before = {
        "machine": machine,
        "cases": [case(2.0), case(9.0, batch=8), {**case(1.0, size="tiny"), "error": "no"}],
        "changes": [],
    }
    after = {"machine": machine, "cases": [case(3.0, peak_memory_gb=1.0), case(9.0, size="tiny")], "changes": []}
    printed = text(bench_tables.comparison(before, after, "a.json", "b.json"))
    assert "1.50" in printed
    assert "0.50 x" in printed
    assert printed.count("pretrain") == 1
    with pytest.raises(UsageError, match="share no case"):
        bench_tables.comparison(before, {**after, "cases": [case(1.0, batch=64)]}, "a.json", "b.json")


@pytest.mark.parametrize("content", [None, "", "[1]", "{}"])
def test_a_file_that_is_no_measurement_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "bench.json").write_text(content)
    with pytest.raises(RecordError, match=r"bench\.json: is not a measurement"):
        bench_tables.read(tmp_path / "bench.json")
