"""HiCMAE in fine-tuning (paper Sec. 3.5): two encoders, fusion, hierarchical feature fusion, a head for classes or targets.

    model = HiCMAEClassifier(config.encoder, config.head)
    scores = model(video, audio)

Parameter names are those of the authors' modeling_finetune_av.py. With one modality, the other encoder and the fusion encoder
do not exist and the head takes half the width: the mixed layers and the last layer of the one stream.

Legend: B batch, N tokens, D width, L layers, K classes or targets.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hicmae.config import EncoderConfig, HeadConfig
from hicmae.errors import UsageError
from hicmae.model.layers import Encoder, FusionEncoder, branches, drop_rates, split_keep
from hicmae.model.pretrain import xavier


class HiCMAEClassifier(nn.Module):
    """The fine-tuning model; `head.modality` says which streams it has."""

    def __init__(self, encoder: EncoderConfig, head: HeadConfig) -> None:
        super().__init__()
        self.encoder_config, self.head_config = encoder, head
        width = 0
        if "V" in head.modality:
            self.encoder = Encoder(encoder, "video")
            width += 2 * encoder.dim
        if "A" in head.modality:
            self.encoder_audio = Encoder(encoder, "audio")
            width += 2 * encoder.dim
        if head.modality == "AV":
            self.encoder_fusion = FusionEncoder(encoder)
        self.fc_norm = nn.LayerNorm(width, encoder.norm_eps)
        self.head = nn.Linear(width, head.outputs)
        if head.feature_fusion == "hierarchical":
            for stream in self.streams:
                start = torch.full((encoder.depth,), 1 / encoder.depth)
                self.register_parameter(f"{stream}_layer_weights", nn.Parameter(start))
        self._initialise()

    def _initialise(self) -> None:
        """As the release: truncated normal in the encoders, Xavier in the fusion encoder, torch's default in the head."""
        for name, part in self.named_children():
            if name in ("encoder", "encoder_audio"):
                part.apply(_truncated_normal)
            elif name == "encoder_fusion":
                part.apply(xavier)

    @property
    def streams(self) -> list[str]:
        """The streams that the model takes, in the order of its features."""
        return [name for name, letter in (("video", "V"), ("audio", "A")) if letter in self.head_config.modality]

    def stream_encoder(self, stream: str) -> Encoder:
        return self.encoder if stream == "video" else self.encoder_audio

    def _stacks(self) -> list[list[nn.Module]]:
        stacks = [list(self.stream_encoder(stream).blocks) for stream in self.streams]
        if self.head_config.modality == "AV":
            stacks += [list(self.encoder_fusion.blocks), list(self.encoder_fusion.blocks_audio)]
        return stacks

    def drop_keep_plan(self, rate: float) -> list[float]:
        """The drop rate of every row of `drop_keep`: video encoder, audio encoder, video fusion, audio fusion."""
        return [r for stack in self._stacks() for r in drop_rates(stack, rate)]

    def layer_weights(self) -> dict[str, Tensor]:
        """Per stream, the learnt weights (L,) that mix the layers; they sum to 1. Empty without hierarchical fusion."""
        if self.head_config.feature_fusion == "last":
            return {}
        return {stream: self.get_parameter(f"{stream}_layer_weights").softmax(0) for stream in self.streams}

    def forward(self, video: Tensor | None = None, audio: Tensor | None = None, drop_keep: Tensor | None = None) -> Tensor:
        """Video (B, 3, T, H, W) and audio (B, 1, T, F), those that the model has -> scores (B, K).

        Raises UsageError when a stream of the model is not given.
        """
        return self.head(self.features(video, audio, drop_keep))

    def features(self, video: Tensor | None = None, audio: Tensor | None = None, drop_keep: Tensor | None = None) -> Tensor:
        """What the head takes (B, 4 D), or (B, 2 D) with one modality: mixed layers of every stream, then its fused tokens."""
        pixels = {"video": video, "audio": audio}
        keep = split_keep(drop_keep, [branches(stack) for stack in self._stacks()])
        mixed, tops = [], []
        for stream, rows in zip(self.streams, keep, strict=False):
            given = pixels[stream]
            if given is None:
                raise UsageError(f"this model takes {' and '.join(self.streams)}; {stream} is missing")
            mix, top = self._mix(stream, self.stream_encoder(stream)(given, keep=rows))
            mixed.append(mix)
            tops.append(top)
        if self.head_config.modality == "AV":
            fusion_keep = None if drop_keep is None else torch.cat([*keep[2:]])  # type: ignore[list-item]
            tops = list(self.encoder_fusion(*tops, fusion_keep))
        return self.fc_norm(torch.cat([*mixed, *(top.mean(1) for top in tops)], dim=-1))

    def _mix(self, stream: str, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Layer outputs (B, N, D) -> their weighted token means (B, D) (Eq. 13) and the normalised last layer (B, N, D)."""
        norm = self.stream_encoder(stream).norm
        top = norm(outputs[-1])
        if self.head_config.feature_fusion == "last":
            return top.mean(1), top
        pooled = torch.stack([*(norm(output).mean(1) for output in outputs[:-1]), top.mean(1)])  # (L, B, D)
        weights = self.get_parameter(f"{stream}_layer_weights").softmax(0)
        return torch.einsum("l,lbd->bd", weights, pooled), top


def _truncated_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
