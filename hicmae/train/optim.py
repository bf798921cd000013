"""AdamW as in the release: learning rate per step, and groups of parameters with layer decay and without weight decay."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hicmae.config import EncoderConfig, OptimConfig
from hicmae.errors import UsageError

# The release names exactly these; its audio mask token is decayed, unlike the video one, and so it is here.
_NEVER_DECAYED = ("mask_token", "pos_embed", "cls_token")


@dataclass
class Group:
    """Parameters that share a weight decay and a factor on the learning rate."""

    weight_decay: float
    lr_scale: float
    names: list[str] = field(default_factory=list)
    params: list[nn.Parameter] = field(default_factory=list)


def learning_rate(step: int, steps_per_epoch: int, optim: OptimConfig) -> float:
    """The rate of optimiser step `step` (from 0): linear from 0, then half a cosine down towards `min_lr`.

    The release's `cosine_scheduler` (utils.py): the last warm-up step has the full rate, and so has the first one after it.
    """
    warmup, total = (epochs * steps_per_epoch for epochs in (optim.warmup_epochs, optim.epochs))
    if step < warmup:
        return optim.lr * step / max(warmup - 1, 1)
    turn = math.pi * (step - warmup) / (total - warmup)
    return optim.min_lr + (optim.lr - optim.min_lr) * (1 + math.cos(turn)) / 2


def layer_of(name: str, encoder: EncoderConfig) -> int:
    """The layer that a parameter counts to: 0 patches, then the blocks of the encoders, of the fusion encoder, then the rest."""
    if "patch_embed" in name or name in _NEVER_DECAYED:
        return 0
    block = re.search(r"blocks(?:_audio)?\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1 + (encoder.depth if "fusion" in name else 0)
    return encoder.depth + encoder.fusion_depth + 1


def parameter_groups(parameters: Iterable[tuple[str, nn.Parameter]], optim: OptimConfig, encoder: EncoderConfig) -> list[Group]:
    """Groups as the release's `get_parameter_groups` (optim_factory.py) makes them, in order of appearance.

    No weight decay on biases and on anything of one dimension. With `layer_decay` d, layer i of n learns at d ** (n - i).
    """
    groups: dict[tuple[float, float], Group] = {}
    top = encoder.depth + encoder.fusion_depth + 1
    for name, parameter in parameters:
        bare = parameter.ndim == 1 or name.endswith(".bias") or name in _NEVER_DECAYED
        decay = 0.0 if bare else optim.weight_decay
        scale = 1.0 if optim.layer_decay == 1 else optim.layer_decay ** (top - layer_of(name, encoder))
        group = groups.setdefault((decay, scale), Group(decay, scale))
        group.names.append(name)
        group.params.append(parameter)
    return list(groups.values())


def adamw(groups: Iterable[Group], optim: OptimConfig) -> torch.optim.AdamW:
    """One fused kernel per group of tensors: 5 % of a step on a CPU, more on a GPU. `lr_scale` stays on the group."""
    plain = [{"params": g.params, "weight_decay": g.weight_decay, "lr_scale": g.lr_scale} for g in groups]
    return _AdamW(plain, lr=optim.lr, betas=optim.betas, fused=True)


class _AdamW(torch.optim.AdamW):
    """Torch's own, without its compiler: importing that, and sympy with it, would cost every run a second and 80 MB.

    Torch does so at the first call of some methods, only to mark them as not to be compiled, which nobody does here; a later
    torch that marks them in another way takes no notice.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        base = torch.optim.Optimizer
        for method in (base.add_param_group, base.zero_grad, base.state_dict, base.load_state_dict):
            plain = inspect.unwrap(method)
            vars(plain).setdefault("__dynamo_disable", plain)
        super().__init__(*arguments, **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        return inspect.unwrap(torch.optim.AdamW.step)(self, closure)


def local_batch(optim: OptimConfig, processes: int) -> int:
    """Samples of a micro-batch on one process. Raises UsageError when the batch does not divide."""
    parts = processes * optim.accumulation_steps
    if optim.batch_size % parts:
        raise UsageError(
            f"optim.batch_size = {optim.batch_size} does not divide over {processes} processes x "
            f"{optim.accumulation_steps} accumulation steps; run it on a number of processes that divides it"
        )
    return optim.batch_size // parts
