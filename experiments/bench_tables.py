"""Reading, writing and printing what `hicmae bench model` measured; no torch, so that a comparison answers at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from hicmae.errors import RecordError, UsageError
from hicmae.record import write_json

_BUSY = 0.6  # of the cores, before the measurement
_KEYS = ("stage", "size", "batch", "precision", "attention", "compiled")


def write(result: dict[str, Any], path: Path) -> None:
    """Write a measurement as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)


def read(path: Path) -> dict[str, Any]:
    """A measurement. Raises RecordError when the file is missing or is none."""
    try:
        result = json.loads(path.read_text())
        _ = result["machine"], result["cases"], result["changes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: is not a measurement of `hicmae bench model` ({type(error).__name__}: {error})") from None
    return result


def tables(result: dict[str, Any]) -> list[Table]:
    """The cases and the ratios, with the machine they were taken on."""
    where = result["machine"]
    gpu = "" if where["gpu_measured"] else "; no GPU measured"
    title = f"Training steps on {where['device']}\n{where['threads']} threads, torch {where['torch']}{gpu}"
    if where["load"] > _BUSY * where["cores"]:
        title += f"\n[yellow]other programs were running (load {where['load']:.1f} on {where['cores']} cores)[/]"
    cases = Table("step", "batch", "s", "clips/s", "TFLOP/s", "of peak", "peak GB", title=title, box=box.SIMPLE_HEAD)
    for case in result["cases"]:
        if "error" in case:
            cases.add_row(_name(case), str(case["batch"]), f"[red]cannot run[/]: {case['error']}")
            continue
        share = "" if case["share_of_peak"] is None else f"{100 * case['share_of_peak']:.0f} %"
        numbers = [f"{case['step_s']:.3f}", f"{case['clips_per_s']:.1f}", f"{case['tflops_per_s']:.2f}"]
        cases.add_row(_name(case), str(case["batch"]), *numbers, share, _two_places(case["peak_memory_gb"]))
    if not result["changes"]:
        return [cases]
    title = "The same step with one thing done another way, timed in turns"
    changes = Table("step", "batch", "changed to", "time", "memory", title=title, box=box.SIMPLE_HEAD)  # fits in 80 columns
    for row in result["changes"]:
        head = f"{row['stage']} {row['size']}", str(row["batch"])
        if "error" in row:
            changes.add_row(*head, row["change"], f"[red]cannot run[/]: {row['error']}")
            continue
        memory = f"x {row['times_the_memory']:.2f}" if row.get("times_the_memory") else ""
        changes.add_row(*head, row["change"], f"x {row['times_as_long']:.2f}", memory)
    return [cases, changes]


def _name(case: dict[str, Any]) -> str:
    attention = "" if case["attention"] == "auto" else f" {case['attention']}"
    mode = " compiled" if case["compiled"] else ""
    return f"{case['stage']} {case['size']} {case['precision']}{attention}{mode}"


def comparison(before: dict[str, Any], after: dict[str, Any], name: str, other: str) -> Table:
    """Cases that both measurements have, with clips/s and memory of each. Raises UsageError when they share none."""
    known = {tuple(case[key] for key in _KEYS): case for case in before["cases"] if "error" not in case}
    pairs = [(known.get(tuple(c[key] for key in _KEYS)), c) for c in after["cases"] if "error" not in c]
    shared = [(old, new) for old, new in pairs if old is not None]
    if not shared:
        raise UsageError(f"{name} and {other} share no case; measure the same stage, size, batch and precision")
    title = f"{before['machine']['device']} -> {after['machine']['device']}"
    table = Table(
        "step", "batch", f"clips/s {name}", f"clips/s {other}", "times as fast", "memory", title=title, box=box.SIMPLE_HEAD
    )
    for old, new in shared:
        speed, gigabytes = new["clips_per_s"] / old["clips_per_s"], [case["peak_memory_gb"] for case in (old, new)]
        memory = "" if None in gigabytes else f"{gigabytes[1] / gigabytes[0]:.2f} x"
        table.add_row(
            _name(new), str(new["batch"]), f"{old['clips_per_s']:.2f}", f"{new['clips_per_s']:.2f}", f"{speed:.2f}", memory
        )
    return table


def _two_places(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
