"""The steps that `hicmae bench model` times: the training objectives on random tensors, as they are or with one thing changed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hicmae import presets
from hicmae.config import FinetuneConfig, PretrainConfig, RunConfig, change
from hicmae.model.masking import audio_mask, video_mask
from hicmae.model.pretrain import HiCMAEPretrain
from hicmae.train import distributed
from hicmae.train.engine import Engine
from hicmae.train.objective import build_model, build_objective
from hicmae.train.optim import adamw, parameter_groups

ATTENTIONS = {
    "auto": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
# What a step is compared with: the same step with one thing done another way.
PLAIN_ATTENTION, PLAIN_ADAMW = "plain attention", "AdamW not fused"
ALL_PATCHES, ALL_FEATURES = "embedding all patches", "normalising all features"
CHECKPOINTING, TWO_HALVES, ZERO = "activation checkpointing", "two accumulated halves", "DeepSpeed, ZeRO "
AS_RELEASED = (PLAIN_ATTENTION, ALL_PATCHES, ALL_FEATURES, PLAIN_ADAMW)  # what the authors' release does
CHANGES = (*AS_RELEASED, CHECKPOINTING, TWO_HALVES, *(f"{ZERO}{stage}" for stage in range(4)))
_SMALLEST_HALVES = {"pretrain": 4, "finetune": 2}  # contrast needs two clips
Step = Callable[[], None]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """What is timed."""

    stage: str
    size: str
    batch: int
    precision: str = "fp32"
    attention: str = "auto"
    compiled: bool = False


def changes_for(case: Case) -> list[str]:
    """The changes that mean something for a case."""
    left_out = set() if case.stage == "pretrain" else {ALL_PATCHES, ALL_FEATURES}
    if case.batch < _SMALLEST_HALVES[case.stage] or case.batch % 2:
        left_out.add(TWO_HALVES)
    return [name for name in CHANGES if name not in left_out]


def step_of(case: Case, device: torch.device, changed: str = "") -> Step:
    """One optimiser step of a new model on fixed random tensors, with one of CHANGES if asked."""
    config = _config(case, changed)
    model = build_model(config).to(device)
    if changed == ALL_PATCHES:
        _embed_everything(model)
    if changed == ALL_FEATURES:
        _normalise_everything(model)
    objective = build_objective(config, model)
    batches = [{name: value.to(device) for name, value in batch.items()} for batch in _batches(config)]
    if changed.startswith(ZERO):
        return _engine_step(config, objective, model, batches)
    groups = parameter_groups(model.named_parameters(), config.optim, config.encoder)
    optimiser = adamw(groups, config.optim)
    if changed == PLAIN_ADAMW:
        optimiser = torch.optim.AdamW(model.parameters(), lr=config.optim.lr, fused=False, foreach=False)
    return _plain_step(objective, optimiser, batches, "math" if changed == PLAIN_ATTENTION else case.attention)


def _plain_step(objective: nn.Module, optimiser: torch.optim.Optimizer, batches: list[Batch], attention: str) -> Step:
    def step() -> None:
        with _kernel(attention):
            for batch in batches:
                (objective(batch)["loss"] / len(batches)).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def _engine_step(config: RunConfig, objective: nn.Module, model: nn.Module, batches: list[Batch]) -> Step:
    groups = parameter_groups(model.named_parameters(), config.optim, config.encoder)
    engine = Engine(objective, model, groups, config.optim, config.engine, distributed.start())
    return lambda: _ignore(engine.step([(batch, None) for batch in batches], config.optim.lr))


def _ignore(_: object) -> None:
    """A step's losses are not needed."""


def _config(case: Case, changed: str) -> RunConfig:
    config: RunConfig = presets.pretrain(case.size) if case.stage == "pretrain" else presets.finetune(case.size)
    delta: dict[str, Any] = {
        "optim.batch_size": case.batch,
        "optim.accumulation_steps": 2 if changed == TWO_HALVES else 1,
        "engine.precision": case.precision,
        "engine.compile": case.compiled,
        "engine.activation_checkpointing": changed == CHECKPOINTING,
        "engine.zero_stage": int(changed.removeprefix(ZERO)) if changed.startswith(ZERO) else 0,
    }
    return change(config, delta)


def _batches(config: RunConfig) -> list[Batch]:
    """The micro-batches of a step."""
    return [_batch(config) for _ in range(config.optim.accumulation_steps)]


def _batch(config: PretrainConfig | FinetuneConfig) -> Batch:
    encoder, side = config.encoder, config.encoder.image_px
    clips = config.optim.batch_size // config.optim.accumulation_steps
    batch = {
        "video": torch.randn(clips, 3, encoder.frames, side, side),
        "audio": torch.randn(clips, 1, encoder.audio_frames, encoder.mel_bins),
    }
    if isinstance(config, FinetuneConfig):
        return {**batch, "label": torch.arange(clips) % config.head.outputs}
    random = np.random.default_rng(0)
    for name, mask in (("masked_video", video_mask), ("masked_audio", audio_mask)):
        batch[name] = torch.from_numpy(np.stack([mask(encoder, config.objective, random) for _ in range(clips)]))
    return batch


class _EmbedAll(nn.Module):
    """Embeds every patch and chooses the visible ones after, as the release does."""

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, pixels: Tensor, index: Tensor) -> Tensor:
        tokens: Tensor = self.embed(pixels)
        return tokens[torch.arange(len(index), device=index.device)[:, None], index]


def _embed_everything(model: nn.Module) -> None:
    assert isinstance(model, HiCMAEPretrain)
    for encoder in (model.encoder, model.encoder_audio):
        encoder.patch_embed = _EmbedAll(encoder.patch_embed)  # type: ignore[assignment]


def _normalise_everything(model: nn.Module) -> None:
    """Normalise the output of every encoder block, and keep it until the encoder is done, as the release does."""
    assert isinstance(model, HiCMAEPretrain)
    for encoder in (model.encoder, model.encoder_audio):
        kept: list[Tensor] = []
        for block in encoder.blocks:
            block.register_forward_hook(lambda _, __, output, norm=encoder.norm, kept=kept: kept.append(norm(output)))
        encoder.register_forward_hook(lambda _, __, ___, kept=kept: kept.clear())


def _kernel(name: str) -> AbstractContextManager[None]:
    backend = ATTENTIONS[name]
    return nullcontext() if backend is None else sdpa_kernel(backend)
