"""What is minimised: masked reconstruction and contrast in pre-training (paper Eq. 6-12), the task's loss in fine-tuning.

Numbers as in the authors' engine_for_pretraining_av.py, engine_for_finetuning_av.py and regression_metrics.py.

Legend: B batch, N tokens, Nh hidden ones, D width, L levels, P values of a patch, K classes or targets, W processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from hicmae.config import EncoderConfig, HeadConfig, ObjectiveConfig
from hicmae.model.layers import patch_view, take_patches
from hicmae.model.pretrain import PretrainOutput

IMAGENET_STD = (0.229, 0.224, 0.225)
_EPS = 1e-6


def pretrain_loss(
    output: PretrainOutput, batch: Mapping[str, Tensor], objective: ObjectiveConfig, encoder: EncoderConfig
) -> dict[str, Tensor]:
    """`loss` and its parts: loss = loss_video + loss_audio + weight * loss_contrastive (Eq. 12).

    `batch` holds video (B, 3, T, H, W), normalised with ImageNet's mean and deviation, and audio (B, 1, T, F).
    """
    target_video = video_targets(batch["video"], encoder, output.hidden_video, objective.frame_difference_group)
    target_audio = audio_targets(batch["audio"], encoder, output.hidden_audio)
    losses = {
        "loss_video": F.mse_loss(output.pred_video.float(), target_video),
        "loss_audio": F.mse_loss(output.pred_audio.float(), target_audio),
    }
    losses["loss"] = losses["loss_video"] + losses["loss_audio"]
    if output.video_levels is not None and output.audio_levels is not None:
        losses["loss_contrastive"] = contrastive_loss(output.video_levels, output.audio_levels, objective)
        losses["loss"] = losses["loss"] + objective.contrastive_weight * losses["loss_contrastive"]
    else:
        losses["loss_contrastive"] = torch.zeros_like(losses["loss"])
    return losses


@torch.no_grad()
def video_targets(video: Tensor, encoder: EncoderConfig, index: Tensor | None, difference_group: int = 0) -> Tensor:
    """What to predict for the tokens of `index` (B, n), or for all: (B, n, P), values in the order (t, y, x, colour).

    Every tubelet is normalised per colour over its positions. With groups, the first frame of a group stays and the others
    become differences from it; groups divide a tubelet, so hidden tubelets alone suffice. The release normalises pixels in
    [0, 1]; here the input's own scale is kept and eps divided by ImageNet's deviation instead, which is the same number.
    """
    patch = (encoder.tubelet_frames, encoder.patch_px, encoder.patch_px)
    tubelets = take_patches(patch_view(video.float(), patch, channels_last=True), index)
    tubelets = tubelets.unflatten(-1, (-1, 3))  # (B, n, P) -> (B, n, P / 3, 3)
    std, mean = torch.std_mean(tubelets, dim=-2, keepdim=True)
    normed = (tubelets - mean) / (std + _EPS / _imagenet_std(video.device))
    if difference_group:
        frames = normed.unflatten(2, (-1, difference_group, patch[1] * patch[2]))  # (B, n, groups, frames, positions, 3)
        frames[:, :, :, 1:] -= frames[:, :, :, :1].clone()
    return normed.flatten(2)


@torch.no_grad()
def audio_targets(audio: Tensor, encoder: EncoderConfig, index: Tensor | None) -> Tensor:
    """Patches of the spectrogram (B, n, P), each normalised over its values: those of `index` (B, n), or all."""
    view = patch_view(audio.float().unsqueeze(2), (1, encoder.patch_px, encoder.patch_px), channels_last=True)
    patches = take_patches(view, index)
    std, mean = torch.std_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (std + _EPS)


def contrastive_logits(video: Tensor, audio: Tensor, temperature: float) -> Tensor:
    """Cosine similarity over temperature (L, B, M) of pooled features (L, B, D) and (L, M, D) (Eq. 9)."""
    return F.normalize(video.float(), dim=-1) @ F.normalize(audio.float(), dim=-1).transpose(1, 2) / temperature


def contrastive_loss(video: Tensor, audio: Tensor, objective: ObjectiveConfig) -> Tensor:
    """InfoNCE both ways, averaged over the two directions and summed over levels (Eq. 10-11), unweighted.

    Negatives are those of this process, or of all processes with `gather_negatives` (gradients flow to all of them).
    """
    all_video, all_audio, first = video, audio, 0
    if objective.gather_negatives and _processes() > 1:
        all_video, all_audio = _AllGather.apply(video), _AllGather.apply(audio)
        first = torch.distributed.get_rank() * video.shape[1]
    to_audio = contrastive_logits(video, all_audio, objective.temperature)  # (L, B, W * B)
    to_video = contrastive_logits(audio, all_video, objective.temperature)
    levels, clips, others = to_audio.shape
    labels = torch.arange(first, first + clips, device=video.device).repeat(levels)
    both = [F.cross_entropy(logits.reshape(-1, others), labels) for logits in (to_audio, to_video)]
    return levels * (both[0] + both[1]) / 2  # the mean over all rows times L is the sum of the levels' means


def finetune_loss(logits: Tensor, targets: Tensor, head: HeadConfig, label_smoothing: float = 0.0) -> Tensor:
    """The task's loss for scores (B, K): labels (B,), class probabilities (B, K) of mixed clips, or targets (B, K).

    Probabilities come smoothed from mixup, so smoothing is for labels alone, as in the release.
    """
    if head.loss == "cross_entropy":
        smoothing = 0.0 if targets.is_floating_point() else label_smoothing
        return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
    if head.loss == "mse":
        return F.mse_loss(logits.float(), targets.float())
    return ccc_loss(logits.float(), targets.float())


def ccc_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 - the mean over targets of Lin's concordance correlation over the batch, (B, K) each.

    No mean over clips: a batch cut up by accumulation gives another loss, and of one clip nothing can be learnt.
    """
    centred, centred_targets = outputs - outputs.mean(0), targets - targets.mean(0)
    covariance = (centred * centred_targets).mean(0)
    spread = centred.square().mean(0) + centred_targets.square().mean(0)
    distance = (outputs.mean(0) - targets.mean(0)).square()
    return 1 - (2 * covariance / (spread + distance).clamp_min(1e-8)).mean()


def of_all_processes(local: Tensor) -> Tensor:
    """(B, K) of every process -> (W * B, K) on each, so that the mean of the processes' gradients is that of one process."""
    return _AllGather.apply(local[None])[0] if _processes() > 1 else local  # (1, W * B, K) -> (W * B, K)


@cache
def _imagenet_std(device: torch.device) -> Tensor:
    """Made once per device: a tensor made from numbers in every step would make the host wait for a GPU."""
    return torch.tensor(IMAGENET_STD, device=device)


def _processes() -> int:
    initialised = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialised else 1


class _AllGather(torch.autograd.Function):
    """(L, B, D) of every process -> (L, W * B, D) on each; the gradient of a process's part is summed over all."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(_processes())]
        torch.distributed.all_gather(parts, local.contiguous())
        ctx.rows = local.shape[1]
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous()
        torch.distributed.all_reduce(summed)
        first = torch.distributed.get_rank() * ctx.rows
        return summed[:, first : first + ctx.rows]
