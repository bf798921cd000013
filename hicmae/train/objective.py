"""What a step computes: the model and its loss as one module for the engine, and the random choices that a step makes.

Nothing here draws from a global generator that was not set for the step: stochastic depth and mixup follow from (seed, step),
are made for the whole batch of the step, and are the same on any number of processes.

Legend: B samples of a micro-batch, R residual branches, K classes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hicmae.config import AugmentConfig, EngineConfig, FinetuneConfig, PretrainConfig, RunConfig
from hicmae.errors import UsageError
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.layers import set_activation_checkpointing
from hicmae.model.losses import finetune_loss, of_all_processes, pretrain_loss
from hicmae.model.pretrain import HiCMAEPretrain
from hicmae.seeding import seed_globals, seeded, torch_generator
from hicmae.train.optim import local_batch

Batch = dict[str, Any]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(engine: EngineConfig, device: torch.device) -> torch.autocast:
    """The precision of a forward pass."""
    dtype = _AUTOCAST.get(engine.precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


class PretrainObjective(nn.Module):
    """Masked reconstruction and contrast (paper Eq. 12)."""

    def __init__(self, config: PretrainConfig, model: HiCMAEPretrain) -> None:
        super().__init__()
        self.config, self.model = config, model

    def forward(self, batch: Mapping[str, Any], drop_keep: Tensor | None = None) -> dict[str, Tensor]:
        """`loss`, `loss_video`, `loss_audio`, `loss_contrastive` of a micro-batch."""
        inputs = [batch[name] for name in ("video", "audio", "masked_video", "masked_audio")]
        with autocast(self.config.engine, inputs[0].device):
            output = self.model(*inputs, drop_keep)
        losses = pretrain_loss(output, batch, self.config.objective, self.config.encoder)
        return {name: value if name == "loss" else value.detach() for name, value in losses.items()}


class FinetuneObjective(nn.Module):
    """The task's loss: a mean over clips, but for `ccc`, a figure of the whole micro-batch, which is gathered for it."""

    def __init__(self, config: FinetuneConfig, model: HiCMAEClassifier) -> None:
        super().__init__()
        self.config, self.model = config, model

    def forward(self, batch: Mapping[str, Any], drop_keep: Tensor | None = None) -> dict[str, Tensor]:
        """`loss` of a micro-batch; its `label` holds classes (B,) or, mixed, probabilities (B, K)."""
        targets = batch["label" if self.config.head.task == "classification" else "targets"]
        with autocast(self.config.engine, targets.device):
            scores = self.model(batch.get("video"), batch.get("audio"), drop_keep)
        if self.config.head.loss == "ccc":
            scores, targets = of_all_processes(scores.float()), of_all_processes(targets)
        return {"loss": finetune_loss(scores, targets, self.config.head, self.config.augment.label_smoothing)}


def build_model(config: RunConfig) -> HiCMAEPretrain | HiCMAEClassifier:
    """A model with the initial weights of the configuration's seed."""
    seed_globals(config.seed, "initial weights")
    if isinstance(config, PretrainConfig):
        return HiCMAEPretrain(config.encoder, config.decoder, config.objective)
    return HiCMAEClassifier(config.encoder, config.head)


def build_objective(config: RunConfig, model: nn.Module) -> PretrainObjective | FinetuneObjective:
    """The module that the engine runs, with activation checkpointing and compilation as configured.

    Raises UsageError when it is to be compiled on a machine without a C++ compiler.
    """
    set_activation_checkpointing(model, config.engine.activation_checkpointing)
    if config.engine.compile:
        _need_compiler()
        model.compile()
    if isinstance(config, PretrainConfig):
        return PretrainObjective(config, model)  # type: ignore[arg-type]
    return FinetuneObjective(config, model)  # type: ignore[arg-type]


def _need_compiler() -> None:
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if not any(map(shutil.which, compilers)):
        raise UsageError(f"engine.compile = True: torch.compile needs a C++ compiler ({' or '.join(compilers)}); install one")


def drop_keep(rates: list[float], batch_size: int, position: Tensor, seed: int, step: int) -> Tensor | None:
    """Stochastic depth of a step (R, B): 0, or 1 / keep probability; None when nothing can be dropped.

    Drawn for the whole batch of the step; `position` (B,) says which of its samples are here.
    """
    if not any(rates):
        return None
    keep = 1 - torch.tensor(rates)[:, None]  # (R, 1)
    drawn = torch.rand(len(rates), batch_size, generator=torch_generator(seed, "drop", step))
    return ((drawn < keep) / keep)[:, position]


def check_contrast(config: RunConfig, processes: int) -> None:
    """Raise UsageError when a contrastive loss would be 0 throughout: every clip alone, without a negative."""
    if isinstance(config, FinetuneConfig) or config.objective.contrastive == "none" or config.objective.gather_negatives:
        return
    optim = config.optim
    if local_batch(optim, processes) < 2:
        raise UsageError(
            f"optim.batch_size = {optim.batch_size} on {processes} processes x {optim.accumulation_steps} accumulation steps "
            f"leaves one clip without negatives to contrast it with; use at least {2 * processes * optim.accumulation_steps}, "
            "fewer processes, or objective.gather_negatives = True"
        )


def mixing(config: RunConfig, processes: int) -> Callable[[Batch, int], None] | None:
    """Mixup and CutMix of video and labels (not of sound), as in the release; None where there is nothing to mix.

    The function changes a batch in place: its video, and its `label` from (B,) to (B, K). Sample i is mixed with sample
    B - 1 - i; the loader hands out samples so that these pairs are the same on any number of processes.
    Raises UsageError when a process would get an odd number of samples.
    """
    if isinstance(config, PretrainConfig) or not config.mixes():
        return None
    if local_batch(config.optim, processes) % 2:
        raise UsageError("mixup and cutmix pair samples: batch_size / (processes x accumulation_steps) must be even")
    mixup = _timm_mixup(config.augment, config.head.outputs)

    def mix(batch: Batch, step: int) -> None:
        with seeded(config.seed, "mix", step):
            batch["video"], batch["label"] = mixup(batch["video"], batch["label"])

    return mix


def _timm_mixup(augment: AugmentConfig, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    from timm.data.mixup import Mixup  # takes seconds to import, so only where it is needed

    return Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        prob=1.0,
        switch_prob=0.5,
        mode="batch",
        label_smoothing=augment.label_smoothing,
        num_classes=classes,
    )
