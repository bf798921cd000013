"""Losses against independent formulas: targets as the paper writes them, timm's smoothing, contrast over real processes."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from hicmae.config import EncoderConfig, HeadConfig, ObjectiveConfig
from hicmae.metrics import ccc
from hicmae.model.losses import (
    audio_targets,
    ccc_loss,
    contrastive_logits,
    contrastive_loss,
    finetune_loss,
    video_targets,
)

ENCODER = EncoderConfig(dim=16, heads=2, fusion_heads=2, image_px=32, frames=4, audio_frames=32, mel_bins=16)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def features(levels: int = 2, clips: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(levels, clips, 5, generator=generator) for _ in range(2))  # type: ignore[return-value]


def test_video_targets_are_tubelets_normalised_per_colour_in_0_to_1() -> None:
    frames = torch.rand(2, 3, 4, 32, 32)
    normalised = (frames - MEAN[:, None, None, None]) / STD[:, None, None, None]
    tubelets = rearrange(frames, "b c (t p) (h q) (w r) -> b (t h w) (p q r) c", p=2, q=16, r=16)
    wanted = (tubelets - tubelets.mean(2, keepdim=True)) / (tubelets.var(2, keepdim=True).sqrt() + 1e-6)
    index = torch.tensor([[1, 4, 6], [0, 2, 7]])
    ours = video_targets(normalised, ENCODER, index)
    assert torch.allclose(ours, wanted[torch.arange(2)[:, None], index].flatten(2), atol=1e-4)
    assert torch.allclose(video_targets(normalised, ENCODER, None), wanted.flatten(2), atol=1e-4)


def test_frame_differences_keep_the_first_frame_of_a_group() -> None:
    encoder = EncoderConfig(**{**ENCODER.__dict__, "tubelet_frames": 4})
    video = torch.randn(1, 3, 4, 32, 32)
    plain = video_targets(video, encoder, None).reshape(1, 4, 4, 16 * 16 * 3)  # four frames to a tubelet
    pairs = video_targets(video, encoder, None, 2).reshape(plain.shape)
    whole = video_targets(video, encoder, None, 4).reshape(plain.shape)
    assert torch.equal(pairs[:, :, [0, 2]], plain[:, :, [0, 2]])
    assert torch.allclose(pairs[:, :, [1, 3]], plain[:, :, [1, 3]] - plain[:, :, [0, 2]])
    assert torch.allclose(whole[:, :, 1:], plain[:, :, 1:] - plain[:, :, :1])


def test_a_grey_tubelet_has_targets_of_zero_not_of_nan() -> None:
    assert video_targets(torch.full((1, 3, 4, 32, 32), 0.3), ENCODER, None, 2).abs().max() < 1e-2
    assert audio_targets(torch.full((1, 1, 32, 16), -1.2), ENCODER, None).abs().max() < 1e-2


def test_audio_targets_are_patches_normalised_over_their_values() -> None:
    audio = torch.randn(2, 1, 32, 16)
    patches = rearrange(audio, "b 1 (t p) (f q) -> b (t f) (p q)", p=16, q=16)
    wanted = (patches - patches.mean(-1, keepdim=True)) / (patches.std(-1, keepdim=True) + 1e-6)
    assert torch.allclose(audio_targets(audio, ENCODER, None), wanted, atol=1e-5)


def test_contrast_is_the_sum_over_levels_of_both_directions_mean() -> None:
    video, audio = features()
    total = 0.0
    for level in range(2):
        v, a = (F.normalize(x[level], dim=-1).numpy().astype(np.float64) for x in (video, audio))
        logits = v @ a.T / 0.07
        for direction in (logits, logits.T):
            log_p = direction - np.log(np.exp(direction).sum(1, keepdims=True))
            total -= 0.5 * np.mean(np.diag(log_p))
    assert contrastive_loss(video, audio, ObjectiveConfig()).item() == pytest.approx(total, rel=1e-5)


def test_matching_pairs_have_less_contrastive_loss_than_shuffled_ones() -> None:
    video, _ = features()
    shuffled = contrastive_loss(video, video.roll(1, dims=1), ObjectiveConfig())
    assert contrastive_loss(video, video, ObjectiveConfig()) < 0.1 * shuffled


def contrast_share(rank: int, port: int, folder: str) -> None:
    """One of two processes: its half of the clips; the loss and the gradient of all clips, averaged over the processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for gather in (True, False):
        values = loss_and_gradients(slice(3 * rank, 3 * rank + 3), gather)
        torch.distributed.all_reduce(values)
        if rank == 0:
            torch.save(values / 2, Path(folder) / f"{gather}.pt")
    torch.distributed.destroy_process_group()


def loss_and_gradients(share: slice, gather: bool) -> Tensor:
    video, audio = (x.requires_grad_() for x in features())
    loss = contrastive_loss(video[:, share], audio[:, share], ObjectiveConfig(gather_negatives=gather))
    loss.backward()
    assert video.grad is not None and audio.grad is not None
    return torch.cat([loss.detach().reshape(1), video.grad.flatten(), audio.grad.flatten()])


def test_negatives_of_two_processes(tmp_path: Path) -> None:
    """Gathered, two processes equal one with all clips, gradients too; not gathered, each has its own negatives alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(contrast_share, (port, str(tmp_path)), nprocs=2)
    assert torch.allclose(torch.load(tmp_path / "True.pt"), loss_and_gradients(slice(0, 6), True), atol=1e-5)
    apart = torch.stack([loss_and_gradients(slice(0, 3), False), loss_and_gradients(slice(3, 6), False)]).mean(0)
    assert torch.allclose(torch.load(tmp_path / "False.pt"), apart, atol=1e-5)


def test_logits_are_cosines_over_temperature() -> None:
    video, audio = features()
    logits = contrastive_logits(3 * video, audio, 0.5)
    assert torch.allclose(logits[1, 2, 4], F.cosine_similarity(video[1, 2], audio[1, 4], dim=0) / 0.5)


def test_classification_losses_equal_timm() -> None:
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    logits, labels, head = torch.randn(8, 6), torch.arange(8) % 6, HeadConfig()
    soft = torch.softmax(torch.randn(8, 6), -1)
    assert torch.allclose(finetune_loss(logits, labels, head, 0.1), LabelSmoothingCrossEntropy(0.1)(logits, labels))
    assert torch.allclose(finetune_loss(logits, soft, head, 0.1), SoftTargetCrossEntropy()(logits, soft))


def test_regression_losses() -> None:
    outputs, targets = torch.randn(30, 3), torch.randn(30, 3)
    mse = finetune_loss(outputs, targets, HeadConfig(task="regression", outputs=3, loss="mse"))
    assert mse.item() == pytest.approx(((outputs - targets) ** 2).mean().item())
    head = HeadConfig(task="regression", outputs=3, loss="ccc")
    unbiased = ccc(targets, outputs).mean() / 100  # differs from the biased one by terms of order 1 / 30
    assert finetune_loss(outputs, targets, head).item() == pytest.approx(1 - unbiased, abs=0.01)


@pytest.mark.parametrize(("outputs", "wanted"), [(lambda t: t, 0.0), (lambda t: -t, 2.0), (lambda t: 0 * t, 1.0)])
def test_concordance_loss_at_its_ends(outputs: Any, wanted: float) -> None:
    targets = torch.tensor([[-1.0], [0.0], [1.0]])
    assert ccc_loss(outputs(targets), targets).item() == pytest.approx(wanted)


def test_concordance_loss_of_one_clip_is_finite() -> None:
    outputs = torch.tensor([[0.5]], requires_grad=True)
    loss = ccc_loss(outputs, torch.tensor([[0.5]]))
    loss.backward()
    assert loss.item() == 1.0
    assert torch.isfinite(outputs.grad).all()
