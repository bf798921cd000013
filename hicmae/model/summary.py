"""Parameters by part and floating-point operations of a size: `hicmae summary [SIZE]`. No weights are made.

Operations are counted by torch on tensors without storage: matrix products, forward and backward, two per multiply-add.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hicmae import presets
from hicmae.config import EncoderConfig, PretrainConfig
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.layers import Encoder
from hicmae.model.masking import hidden_tokens
from hicmae.model.pretrain import HiCMAEPretrain

PARTS = {
    "encoder": "video encoder",
    "encoder_audio": "audio encoder",
    "encoder_fusion": "fusion encoder",
    "decoder": "video decoder",
    "decoder_audio": "audio decoder",
}


@dataclass(frozen=True)
class Summary:
    """One stage of a size: parameters by part, operations of one clip."""

    stage: str
    parameters: dict[str, int]
    forward_flops: int
    step_flops: int  # forward and backward

    @property
    def total(self) -> int:
        return sum(self.parameters.values())


def summarise(size: str, outputs: int = 6) -> list[Summary]:
    """Pre-training and fine-tuning of a preset. Raises UsageError for an unknown size."""
    pretrain, finetune = presets.pretrain(size), presets.finetune(size, outputs=outputs)
    with torch.device("meta"):
        models = (
            HiCMAEPretrain(pretrain.encoder, pretrain.decoder, pretrain.objective),
            HiCMAEClassifier(finetune.encoder, finetune.head),
        )
    return [
        Summary("pretrain", count_parameters(models[0]), *pretrain_flops(models[0], pretrain)),
        Summary("finetune", count_parameters(models[1]), *finetune_flops(models[1], finetune.encoder)),
    ]


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters by part; what belongs to no encoder or decoder is `head and rest`."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[PARTS.get(name.split(".")[0], "head and rest")] += parameter.numel()
    return dict(counts)


def pretrain_flops(model: HiCMAEPretrain, config: PretrainConfig) -> tuple[int, int]:
    """Operations of one clip: forward, and forward with backward."""
    video, audio = _inputs(config.encoder)
    hidden = hidden_tokens(config.encoder, config.objective)
    masks = [torch.zeros(1, len(part.positions), dtype=torch.bool, device="meta") for part in _encoders(model)]
    assert all(0 < count < mask.shape[1] for count, mask in zip(hidden, masks, strict=True))

    def loss() -> Tensor:
        output = model(video, audio, *masks)
        return output.pred_video.sum() + output.pred_audio.sum()

    return _count(loss)


def finetune_flops(model: HiCMAEClassifier, encoder: EncoderConfig) -> tuple[int, int]:
    """Operations of one clip: forward, and forward with backward."""
    video, audio = _inputs(encoder)
    return _count(lambda: model(video, audio).sum())


def _encoders(model: HiCMAEPretrain) -> tuple[Encoder, Encoder]:
    return model.encoder, model.encoder_audio


def _inputs(encoder: EncoderConfig) -> tuple[Tensor, Tensor]:
    side = encoder.image_px
    shapes = (1, 3, encoder.frames, side, side), (1, 1, encoder.audio_frames, encoder.mel_bins)
    return torch.empty(shapes[0], device="meta"), torch.empty(shapes[1], device="meta")


def _count(loss: Callable[[], Tensor]) -> tuple[int, int]:
    with FlopCounterMode(display=False) as forward:
        loss()
    with FlopCounterMode(display=False) as both:
        loss().backward()
    return forward.get_total_flops(), both.get_total_flops()
