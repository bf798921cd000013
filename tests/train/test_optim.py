"""Learning rates and parameter groups equal those of the authors' release (tests/golden)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hicmae.config import DecoderConfig, EncoderConfig, HeadConfig, ObjectiveConfig, OptimConfig
from hicmae.errors import UsageError
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.pretrain import HiCMAEPretrain
from hicmae.train.optim import adamw, learning_rate, local_batch, parameter_groups

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
SCHEDULES = json.loads((GOLDEN / "lr_schedules.json").read_text())
WIDTH_256 = EncoderConfig(dim=256, heads=4, fusion_heads=4)
TINY = EncoderConfig(
    dim=16, heads=2, depth=2, fusion_depth=1, fusion_heads=2, image_px=32, frames=4, audio_frames=32, mel_bins=32
)


@pytest.mark.parametrize(
    ("name", "base_lr", "base_min_lr", "batch_size"),
    [("finetune_crema_d", 1e-3, 1e-6, 56), ("pretrain_voxceleb2", 3e-4, 1e-5, 160)],
)
def test_every_step_of_the_released_schedules(name: str, base_lr: float, base_min_lr: float, batch_size: int) -> None:
    wanted = SCHEDULES[name]
    optim = OptimConfig(
        base_lr=base_lr,
        base_min_lr=base_min_lr,
        batch_size=batch_size,
        epochs=wanted["epochs"],
        warmup_epochs=wanted["warmup_epochs"],
    )
    ours = [learning_rate(step, wanted["steps_per_epoch"], optim) for step in range(wanted["num_steps"])]
    assert {step: ours[int(step)] for step in wanted["steps"]} == pytest.approx(wanted["steps"], rel=1e-9, abs=1e-15)
    assert sum(ours) == pytest.approx(wanted["sum"], rel=1e-12)


@given(st.integers(1, 50), st.integers(0, 10), st.integers(0, 10), st.floats(1e-6, 1e-2))
def test_the_rate_rises_then_falls_and_stays_within_bounds(steps: int, warmup: int, more: int, base_lr: float) -> None:
    optim = OptimConfig(base_lr=base_lr, base_min_lr=0.0, batch_size=256, epochs=max(1, warmup + more), warmup_epochs=warmup)
    rates = [learning_rate(step, steps, optim) for step in range(steps * optim.epochs)]
    turn = steps * warmup
    assert all(0 <= rate <= base_lr * (1 + 1e-12) for rate in rates)
    assert rates[:turn] == sorted(rates[:turn]) and rates[turn:] == sorted(rates[turn:], reverse=True)


def test_parameter_groups_of_the_released_fine_tuning() -> None:
    wanted = json.loads((GOLDEN / "finetune_param_groups.json").read_text())
    with torch.device("meta"):
        model = HiCMAEClassifier(WIDTH_256, HeadConfig(outputs=6))
    optim = OptimConfig(layer_decay=wanted["layer_decay"], weight_decay=wanted["weight_decay"])
    ours = {
        frozenset(g.names): (g.weight_decay, g.lr_scale) for g in parameter_groups(model.named_parameters(), optim, WIDTH_256)
    }
    theirs = {frozenset(g["names"]): (g["weight_decay"], g["lr_scale"]) for g in wanted["groups"]}
    assert ours.keys() == theirs.keys()
    assert all(ours[names] == pytest.approx(theirs[names], rel=1e-12) for names in theirs)


def test_every_parameter_is_in_one_group_for_every_modality() -> None:
    for modality in ("AV", "A", "V"):
        model = HiCMAEClassifier(TINY, HeadConfig(outputs=3, modality=modality))
        groups = parameter_groups(model.named_parameters(), OptimConfig(layer_decay=0.5), TINY)
        assert sorted(name for group in groups for name in group.names) == sorted(dict(model.named_parameters()))
        scale = {name: group.lr_scale for group in groups for name in group.names}
        first = "encoder_audio" if modality == "A" else "encoder"
        assert scale["head.weight"] == 1 and scale[f"{first}.patch_embed.proj.weight"] == 0.5 ** (
            TINY.depth + TINY.fusion_depth + 1
        )


def test_pre_training_decays_weights_but_not_biases_norms_and_the_video_mask_token() -> None:
    model = HiCMAEPretrain(TINY, DecoderConfig(dim=16, heads=2, depth=2), ObjectiveConfig(levels=(2,)))
    decayed, bare = (
        {
            name
            for group in parameter_groups(model.named_parameters(), OptimConfig(), TINY)
            if group.weight_decay == decay
            for name in group.names
        }
        for decay in (0.05, 0.0)
    )
    assert {"encoder.blocks.0.attn.qkv.weight", "decoder.head.weight", "mask_token_audio"} <= decayed
    assert {"mask_token", "encoder.norm.weight", "decoder.head.bias", "encoder.blocks.0.attn.q_bias"} <= bare
    assert all(model.get_parameter(name).ndim > 1 for name in decayed)


def test_one_step_of_adamw_is_the_textbook_step() -> None:
    """Loshchilov and Hutter 2019, Algorithm 2, on one weight."""
    optim = OptimConfig(base_lr=0.1, batch_size=256, betas=(0.9, 0.99), weight_decay=0.5)
    weight = torch.nn.Parameter(torch.tensor([[2.0]]))
    optimiser = adamw(parameter_groups([("w", weight)], optim, TINY), optim)
    weight.grad = torch.tensor([[3.0]])
    optimiser.step()
    assert weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1 * 3.0 / (3.0 + 1e-8), rel=1e-6)


def test_a_batch_that_does_not_divide_is_refused_with_its_numbers() -> None:
    optim = OptimConfig(batch_size=12, accumulation_steps=2)
    assert local_batch(optim, 3) == 2
    with pytest.raises(UsageError, match=r"batch_size = 12 does not divide over 4 processes x 2 accumulation steps"):
        local_batch(optim, 4)


def test_steps_do_without_torchs_compiler() -> None:
    """Importing it would cost every run a second; a later torch that marks its methods in another way would bring it back."""
    code = """
import sys, torch
from hicmae.config import OptimConfig
from hicmae.train.optim import Group, adamw
parameter = torch.nn.Parameter(torch.zeros(3))
optimizer = adamw([Group(0.0, 1.0, ["x"], [parameter])], OptimConfig())
for _ in range(2):
    parameter.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False"]
