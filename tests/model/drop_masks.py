"""Stochastic depth for tests: a tensor as the training loop gives to models."""

from __future__ import annotations

import torch
from torch import Tensor


def drawn(rates: list[float], clips: int, seed: int = 0) -> Tensor:
    """(R, B): 0 for a dropped branch, 1 / (1 - rate) for a kept one."""
    kept = 1 - torch.tensor(rates)[:, None]
    return (torch.rand(len(rates), clips, generator=torch.Generator().manual_seed(seed)) < kept) / kept
