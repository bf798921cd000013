"""Timing training steps on ready tensors: what `hicmae bench model` and `hicmae bench compare` do.

A case is one stage, size, batch, precision, attention kernel, eager or compiled. A ratio is the step with one speed-up against
the same step without it, timed in turns so that a change in the machine's load touches both alike.

    hicmae bench model --size base --batch 4
    hicmae bench compare before.json after.json
"""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hicmae import presets
from hicmae.config import FinetuneConfig, PretrainConfig, change
from hicmae.errors import UsageError, raise_unknown
from hicmae.model import layers
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.layers import set_activation_checkpointing
from hicmae.model.losses import finetune_loss, pretrain_loss
from hicmae.model.masking import audio_mask, video_mask
from hicmae.model.pretrain import HiCMAEPretrain
from hicmae.model.summary import summarise

STAGES = ("pretrain", "finetune")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
ATTENTIONS = {
    "auto": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
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
RATIOS = {
    "fused attention": "attention",
    "embedding visible patches alone": "embedding",
    "fused AdamW": "optimiser",
    "activation checkpointing": "checkpointing",
    "two accumulated halves": "accumulation",
}
_WARM_UP = 2


@dataclass(frozen=True)
class Case:
    """What is timed."""

    stage: str
    size: str
    batch: int
    precision: str = "fp32"
    attention: str = "auto"
    compiled: bool = False


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
    if batches and min(batches) < 2:
        raise UsageError("batch: contrast needs at least 2 clips")
    own_batch = {"pretrain": 160, "finetune": 56} if cuda else {"pretrain": 4, "finetune": 2}
    modes = (compiled,) if compiled is not None else ((False, True) if cuda else (False,))
    cases = [
        Case(stage, size, batch, precision, attention, mode)
        for size, stage, precision, attention, mode in itertools.product(sizes, stages, precisions, attentions, modes)
        for batch in batches or (own_batch[stage],)
    ]
    return Settings(device, tuple(cases))


def measure(settings: Settings, steps: int, ratios: bool, show: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Time every case, then the ratios of the first case of each stage; `show(done, total, what)` after each."""
    jobs = [(case, None) for case in settings.cases]
    if ratios:
        first = {case.stage: case for case in reversed(settings.cases) if not case.compiled}
        jobs += [(case, name) for case in first.values() for name in RATIOS if _applies(name, case)]  # type: ignore[misc]
    result: dict[str, Any] = {"machine": machine(settings.device), "steps": steps, "cases": [], "ratios": []}
    for done, (case, ratio) in enumerate(jobs):
        show(done, len(jobs), f"{case.stage} {case.size} {ratio or case.precision}")
        if ratio is None:
            result["cases"].append(measure_case(case, settings.device, steps))
        else:
            result["ratios"].append(measure_ratio(case, ratio, settings.device, steps))
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
    row: dict[str, Any] = asdict(case)
    try:
        trainer = Trainer(case, device)
        if case.compiled:
            trainer.model.compile()
        with _kernel(case.attention):
            for _ in range(_WARM_UP):
                trainer.step()
            _reset_peak(device)
            seconds = [_timed(trainer.step, device) for _ in range(steps)]
    except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
        return {**row, "error": str(error).strip().split("\n")[0][:200]}
    median_s = statistics.median(seconds)
    flops = next(s.step_flops for s in summarise(case.size) if s.stage == case.stage) * case.batch
    peak = _peak_tflops(device) if case.precision != "fp32" else None
    return {
        **row,
        "step_s": median_s,
        "fastest_step_s": min(seconds),
        "clips_per_s": case.batch / median_s,
        "tflops_per_s": flops / median_s / 1e12,
        "share_of_peak": None if peak is None else flops / median_s / 1e12 / peak,
        "peak_memory_gb": _peak_memory(device),
    }


def measure_ratio(case: Case, name: str, device: torch.device, steps: int) -> dict[str, Any]:
    """The step as it is and with one thing done the other way, in turns; `faster` above 1 means that the former is faster."""
    trainer = Trainer(case, device)
    other = Variant(trainer, RATIOS[name])
    own, others = [], []
    for turn in range(steps + 1):
        own.append(_timed(trainer.step, device))
        others.append(_timed(other.step, device))
        if turn == 0:
            own.clear()
            others.clear()
    medians = statistics.median(own), statistics.median(others)
    return {**asdict(case), "ratio": name, "step_s": medians[0], "other_step_s": medians[1], "faster": medians[1] / medians[0]}


class Trainer:
    """A model with random tensors and AdamW, taking the steps of a case."""

    def __init__(self, case: Case, device: torch.device) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, device
        self.config = _config(case)
        self.model, self.batch = _model_and_batch(self.config, case.batch)
        self.model.to(device)
        self.batch = {name: value.to(device) for name, value in self.batch.items()}
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)

    def loss(self, part: slice = slice(None)) -> Tensor:
        batch = {name: value[part] for name, value in self.batch.items()}
        dtype = PRECISIONS[self.case.precision]
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            if isinstance(self.config, PretrainConfig):
                output = self.model(*(batch[name] for name in ("video", "audio", "masked_video", "masked_audio")))
            else:
                output = self.model(batch["video"], batch["audio"])
        if isinstance(self.config, PretrainConfig):
            return pretrain_loss(output, batch, self.config.objective, self.config.encoder)["loss"]
        return finetune_loss(output, batch["label"], self.config.head)

    def step(self) -> None:
        self.loss().backward()
        self.optimiser.step()
        self.optimiser.zero_grad()


class Variant:
    """The same trainer with one thing done the other way."""

    def __init__(self, trainer: Trainer, kind: str) -> None:
        self.trainer, self.kind = trainer, kind
        self.optimiser = torch.optim.AdamW(trainer.model.parameters(), lr=1e-6, fused=False, foreach=False)

    def step(self) -> None:
        with self._changed():
            if self.kind == "accumulation":
                half = self.trainer.case.batch // 2
                for part in (slice(None, half), slice(half, None)):
                    (self.trainer.loss(part) / 2).backward()
            else:
                self.trainer.loss().backward()
        optimiser = self.optimiser if self.kind == "optimiser" else self.trainer.optimiser
        optimiser.step()
        optimiser.zero_grad()

    def _changed(self) -> AbstractContextManager[None]:
        if self.kind == "attention":
            return _kernel("math")
        if self.kind == "embedding":
            return _embedding_all()
        return _checkpointing(self.trainer.model) if self.kind == "checkpointing" else nullcontext()


def _applies(name: str, case: Case) -> bool:
    return {"embedding": case.stage == "pretrain", "accumulation": case.batch >= 4}.get(RATIOS[name], True)


@contextmanager
def _checkpointing(model: nn.Module) -> Iterator[None]:
    set_activation_checkpointing(model)
    try:
        yield
    finally:
        set_activation_checkpointing(model, on=False)


@contextmanager
def _embedding_all() -> Iterator[None]:
    """Embed every patch and choose the visible ones after, as the release does."""
    own = layers.PatchEmbed.forward

    def everything(self: layers.PatchEmbed, pixels: Tensor, index: Tensor | None = None) -> Tensor:
        tokens = own(self, pixels)
        return tokens if index is None else tokens[torch.arange(len(index), device=index.device)[:, None], index]

    layers.PatchEmbed.forward = everything  # type: ignore[method-assign]
    try:
        yield
    finally:
        layers.PatchEmbed.forward = own  # type: ignore[method-assign]


def _kernel(name: str) -> AbstractContextManager[None]:
    backend = ATTENTIONS[name]
    return nullcontext() if backend is None else sdpa_kernel(backend)


def _config(case: Case) -> PretrainConfig | FinetuneConfig:
    config: PretrainConfig | FinetuneConfig = (
        presets.pretrain(case.size) if case.stage == "pretrain" else presets.finetune(case.size)
    )
    return change(config, {"optim.batch_size": case.batch})


def _model_and_batch(config: PretrainConfig | FinetuneConfig, clips: int) -> tuple[nn.Module, dict[str, Tensor]]:
    encoder, side = config.encoder, config.encoder.image_px
    batch = {
        "video": torch.randn(clips, 3, encoder.frames, side, side),
        "audio": torch.randn(clips, 1, encoder.audio_frames, encoder.mel_bins),
    }
    if isinstance(config, FinetuneConfig):
        return HiCMAEClassifier(encoder, config.head), {**batch, "label": torch.arange(clips) % config.head.outputs}
    random = np.random.default_rng(0)
    for name, mask in (("masked_video", video_mask), ("masked_audio", audio_mask)):
        batch[name] = torch.from_numpy(np.stack([mask(encoder, config.objective, random) for _ in range(clips)]))
    return HiCMAEPretrain(encoder, config.decoder, config.objective), batch


def _timed(step: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    begun = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # Linux: start the peak of this process anew


def _peak_memory(device: torch.device) -> float | None:
    """GB: the allocator's peak on a GPU, the process's resident peak on a CPU; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
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
