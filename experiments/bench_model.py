"""Timing training steps on ready tensors: what `hicmae bench model` and `hicmae bench compare` do.

A case is one stage, size, batch, precision, attention kernel, eager or compiled. Then the step is compared with the same step
with one thing done another way, timed in turns so that a change in the machine's load touches both alike.

    hicmae bench model --size base --batch 4
    hicmae bench compare before.json after.json
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.bench_steps import ATTENTIONS, ZERO, Case, changes_for, step_of
from hicmae import presets
from hicmae.errors import HicmaeError, UsageError, raise_unknown
from hicmae.model.summary import summarise
from hicmae.train.memory import keep_freed_memory

STAGES = ("pretrain", "finetune")
PRECISIONS = ("fp32", "bf16", "fp16")
# Dense 16-bit TFLOP/s of the maker's data sheets, without sparsity; by a part of the card's name.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A10": 125.0,
    "V100": 125.0,
    "T4": 65.0,
}
_WARM_UP = 2
# Out of memory, a kernel that this device does not have; a compiler that is not installed.
_CANNOT_RUN = (RuntimeError, HicmaeError)


@dataclass(frozen=True)
class Settings:
    """The cases of one measurement and where they run."""

    device: torch.device
    cases: tuple[Case, ...]


def settings_for(
    device: torch.device,
    sizes: Sequence[str] | None = None,
    stages: Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
    precisions: Sequence[str] | None = None,
    attentions: Sequence[str] | None = None,
    compiled: bool | None = None,
) -> Settings:
    """All combinations of what was asked for; defaults fit the device. Raises UsageError for unknown names."""
    cuda = device.type == "cuda"
    sizes = sizes or (("tiny", "small", "base") if cuda else ("base",))
    stages, attentions = stages or STAGES, attentions or ("auto",)
    precisions = precisions or (("bf16",) if cuda else ("fp32",))
    for kind, names, valid in (
        ("size", sizes, presets.ENCODERS),
        ("stage", stages, STAGES),
        ("precision", precisions, PRECISIONS),
        ("attention", attentions, ATTENTIONS),
    ):
        for name in names:
            if name not in valid:
                raise_unknown(kind, name, valid)
    least = 2 if "pretrain" in stages else 1  # contrast compares clips
    if batches and min(batches) < least:
        raise UsageError(f"batch {min(batches)}: must be at least {least}")
    own_batch = {"pretrain": 160, "finetune": 56} if cuda else {"pretrain": 4, "finetune": 2}
    modes = (compiled,) if compiled is not None else ((False, True) if cuda else (False,))
    cases = [
        Case(stage, size, batch, precision, attention, mode)
        for size, stage, precision, attention, mode in itertools.product(sizes, stages, precisions, attentions, modes)
        for batch in batches or (own_batch[stage],)
    ]
    return Settings(device, tuple(cases))


def measure(settings: Settings, steps: int, compare: bool, show: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Time every case, then the changes to the first eager case of each stage; `show(done, total, what)` goes before each."""
    if settings.device.type == "cpu":
        keep_freed_memory()  # as runs do
    jobs = [(case, "") for case in settings.cases]
    if compare:
        first = {case.stage: case for case in reversed(settings.cases) if not case.compiled}
        jobs += [(case, change) for case in first.values() for change in changes_for(case)]
    result: dict[str, Any] = {"machine": machine(settings.device), "steps": steps, "cases": [], "changes": []}
    for done, (case, change) in enumerate(jobs):
        show(done, len(jobs), f"{case.stage} {case.size} {change or case.precision}")
        if change:
            result["changes"].append(measure_change(case, change, settings.device, steps))
        else:
            result["cases"].append(measure_case(case, settings.device, steps))
    show(len(jobs), len(jobs), "done")
    return result


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were taken on."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "gpu_measured": on_gpu,
    }


def measure_case(case: Case, device: torch.device, steps: int) -> dict[str, Any]:
    """Clips/s, TFLOP/s, share of peak and peak memory of one case; `error` instead where it cannot run here."""
    try:
        step = step_of(case, device)
        for _ in range(_WARM_UP):
            step()
        _reset_peak(device)
        seconds = [_timed(step, device) for _ in range(steps)]
    except _CANNOT_RUN as error:
        return {**asdict(case), "error": _first_line(error)}
    median_s = statistics.median(seconds)
    flops = next(s.step_flops for s in summarise(case.size) if s.stage == case.stage) * case.batch
    peak = _peak_tflops(device) if case.precision != "fp32" else None
    return {
        **asdict(case),
        "step_s": median_s,
        "fastest_step_s": min(seconds),
        "clips_per_s": case.batch / median_s,
        "tflops_per_s": flops / median_s / 1e12,
        "share_of_peak": None if peak is None else flops / median_s / 1e12 / peak,
        "peak_memory_gb": _peak_memory(device),
    }


def measure_change(case: Case, change: str, device: torch.device, steps: int) -> dict[str, Any]:
    """The step as it is and changed, in turns: `times_as_long` and `times_the_memory`. `error` where it cannot run."""
    row: dict[str, Any] = {**asdict(case), "change": change}
    try:
        if change.startswith(ZERO):  # the first of its kind imports much that no step needs again
            step_of(replace(case, size="smoke"), device, change)()
        both, gigabytes = zip(*(_with_memory(case, device, name) for name in ("", change)), strict=True)
        turns = [[_timed(step, device) for step in both] for _ in range(steps)]
    except _CANNOT_RUN as error:
        return {**row, "error": _first_line(error)}
    own, changed = (statistics.median(column) for column in zip(*turns, strict=True))
    row |= {"step_s": own, "changed_step_s": changed, "times_as_long": changed / own}
    row |= {"memory_gb": gigabytes[0], "changed_memory_gb": gigabytes[1]}
    return {**row, "times_the_memory": None if None in gigabytes else gigabytes[1] / gigabytes[0]}


def _with_memory(case: Case, device: torch.device, change: str) -> tuple[Callable[[], None], float | None]:
    """A step, and the GB that its second run takes at most, model and optimiser included, beyond what was there before."""
    before = _memory_now(device)
    step = step_of(case, device, change)
    step()
    _reset_peak(device)
    step()
    peak = _peak_memory(device)
    return step, None if peak is None or before is None else peak - before


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def _timed(step: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    begun = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory_now(device: torch.device) -> float | None:
    """GB in use, once memory that Python and the C library no longer need has been given back."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e9
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    return _resident("VmRSS")


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # Linux: start the peak of this process anew


def _peak_memory(device: torch.device) -> float | None:
    """GB: the allocator's peak on a GPU, the process's resident peak on a CPU; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return _resident("VmHWM")


def _resident(name: str) -> float | None:
    """A number of /proc/self/status in GB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return float(line.split()[1]) * 1024 / 1e9


def _peak_tflops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return name or platform.machine()
