"""HiCMAE in pre-training (paper Sec. 3.1-3.4): two masked encoders, fusion, two decoders with hierarchical skip connections.

    model = HiCMAEPretrain(config.encoder, config.decoder, config.objective)
    output = model(video, audio, masked_video, masked_audio)
    losses = pretrain_loss(output, batch, config.objective, config.encoder)

Parameter names are those of the authors' modeling_pretrain_av.py. Only visible patches are embedded, only the levels that are
used are normalised, and the last decoder block computes hidden tokens alone.

Legend: B batch, N tokens of a stream, Nv visible and Nh hidden ones, D width, L levels, P values of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hicmae.config import DecoderConfig, EncoderConfig, ObjectiveConfig
from hicmae.errors import UsageError
from hicmae.model.layers import (
    Block,
    Encoder,
    FusionEncoder,
    Stack,
    branches,
    drop_rates,
    sine_positions,
    split_keep,
)
from hicmae.model.masking import hidden_tokens


class PretrainOutput(NamedTuple):
    """What the losses need. `hidden_*` are the indices of the hidden tokens, rising, in the order of the predictions."""

    pred_video: Tensor  # (B, Nh, P)
    pred_audio: Tensor  # (B, Nh, P)
    video_levels: Tensor | None  # (L, B, D) pooled features for contrast; None without contrast
    audio_levels: Tensor | None  # (L, B, D)
    hidden_video: Tensor  # (B, Nh)
    hidden_audio: Tensor  # (B, Nh)


class Decoder(Stack):
    """The decoder of one stream; block i > 0 attends to a level of its encoder, the deepest level first (Sec. 3.3)."""

    positions: Tensor  # (N, D)

    def __init__(self, config: DecoderConfig, encoder: EncoderConfig, tokens: int, values: int) -> None:
        super().__init__()
        size = (config.dim, config.heads, encoder.mlp_ratio, encoder.norm_eps)
        self.blocks = nn.ModuleList(Block(*size, cross=config.skip_connections and i > 0) for i in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, encoder.norm_eps)
        self.head = nn.Linear(config.dim, values)
        self.register_buffer("positions", sine_positions(tokens, config.dim), persistent=False)

    def forward(self, x: Tensor, hidden: int, skips: Sequence[Tensor], keep: Tensor | None = None) -> Tensor:
        """Tokens (B, N, D), the hidden ones last, and skips (B, Nv, D) from shallow to deep -> predictions (B, Nh, P)."""
        rows = split_keep(keep, [branches([block]) for block in self.blocks])
        contexts = [None, *reversed(skips)] if skips else [None] * len(self.blocks)
        for i, block in enumerate(self.blocks):
            is_last = i + 1 == len(self.blocks)
            x = self.run(block, x, contexts[i], rows[i], hidden if is_last else None)
        return self.head(self.norm(x))


class HiCMAEPretrain(nn.Module):
    """The pre-training model. Its masks hide exactly `hidden_tokens(encoder, objective)` tokens in every row."""

    def __init__(self, encoder: EncoderConfig, decoder: DecoderConfig, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.encoder_config, self.decoder_config, self.objective = encoder, decoder, objective
        self.hidden_video, self.hidden_audio = hidden_tokens(encoder, objective)
        self.encoder = Encoder(encoder, "video")
        self.decoder = Decoder(decoder, encoder, math.prod(encoder.video_grid), 3 * _volume(encoder))
        self.encoder_to_decoder = nn.Linear(encoder.dim, decoder.dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.dim))
        self.encoder_audio = Encoder(encoder, "audio")
        self.decoder_audio = Decoder(decoder, encoder, math.prod(encoder.audio_grid), encoder.patch_px**2)
        self.encoder_to_decoder_audio = nn.Linear(encoder.dim, decoder.dim, bias=False)
        self.mask_token_audio = nn.Parameter(torch.zeros(1, 1, decoder.dim))
        self.encoder_fusion = FusionEncoder(encoder)
        self._initialise()

    def _initialise(self) -> None:
        """As the release: Xavier for linear maps; the encoder-to-decoder maps keep torch's default."""
        for part in (self.encoder, self.decoder, self.encoder_audio, self.decoder_audio, self.encoder_fusion):
            part.apply(xavier)
        for token in (self.mask_token, self.mask_token_audio):
            nn.init.trunc_normal_(token, std=0.02, a=-0.02, b=0.02)

    def _stacks(self) -> list[list[nn.Module]]:
        """The blocks in the order of the rows of `drop_keep`."""
        fusion = self.encoder_fusion
        lists = (self.encoder.blocks, self.encoder_audio.blocks, fusion.blocks, fusion.blocks_audio)
        return [list(blocks) for blocks in (*lists, self.decoder.blocks, self.decoder_audio.blocks)]

    def drop_keep_plan(self, rate: float) -> list[float]:
        """The drop rate of every row of `drop_keep`: encoder, encoder_audio, fusion (video, audio), decoder, decoder_audio."""
        return [r for stack in self._stacks() for r in drop_rates(stack, rate)]

    def forward(
        self,
        video: Tensor,
        audio: Tensor,
        masked_video: Tensor,
        masked_audio: Tensor,
        drop_keep: Tensor | None = None,
    ) -> PretrainOutput:
        """Video (B, 3, T, H, W), audio (B, 1, T, F), masks (B, N), drop_keep (R, B).

        Raises UsageError for masks that do not hide the configured number of tokens (checked where it costs nothing: on the CPU).
        """
        rows = [branches(stack) for stack in self._stacks()]
        keep = split_keep(drop_keep, [rows[0], rows[1], rows[2] + rows[3], rows[4], rows[5]])
        visible_video, hidden_video = split_tokens(masked_video, self.hidden_video)
        visible_audio, hidden_audio = split_tokens(masked_audio, self.hidden_audio)
        video_outputs = self.encoder(video, visible_video, keep[0])
        audio_outputs = self.encoder_audio(audio, visible_audio, keep[1])
        used = self._used_levels()
        normed_video = {level: self.encoder.norm(video_outputs[level - 1]) for level in used}
        normed_audio = {level: self.encoder_audio.norm(audio_outputs[level - 1]) for level in used}
        depth = self.encoder_config.depth
        fused_video, fused_audio = self.encoder_fusion(normed_video[depth], normed_audio[depth], keep[2])
        skips = self.objective.levels if self.decoder_config.skip_connections else ()
        pred_video = _decode(
            self.decoder,
            self.encoder_to_decoder,
            self.mask_token,
            [fused_video, *(normed_video[level] for level in skips)],
            (visible_video, hidden_video),
            keep[3],
        )
        pred_audio = _decode(
            self.decoder_audio,
            self.encoder_to_decoder_audio,
            self.mask_token_audio,
            [fused_audio, *(normed_audio[level] for level in skips)],
            (visible_audio, hidden_audio),
            keep[4],
        )
        contrasted = self.contrast_levels()
        video_levels, audio_levels = _pool(normed_video, contrasted), _pool(normed_audio, contrasted)
        return PretrainOutput(pred_video, pred_audio, video_levels, audio_levels, hidden_video, hidden_audio)

    def contrast_levels(self) -> tuple[int, ...]:
        """The encoder layers, counted from 1, whose features are contrasted."""
        kinds = {"none": (), "last": (self.encoder_config.depth,), "hierarchical": self.objective.levels}
        return kinds[self.objective.contrastive]

    def _used_levels(self) -> list[int]:
        skips = self.objective.levels if self.decoder_config.skip_connections else ()
        return sorted({*skips, *self.contrast_levels(), self.encoder_config.depth})


def split_tokens(masked: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    """Indices (B, Nv) of the visible and (B, Nh) of the hidden tokens, both rising; every row hides `hidden` of them."""
    if masked.device.type == "cpu" and not torch.compiler.is_compiling():
        counts = masked.sum(1).tolist()
        if set(counts) - {hidden}:
            raise UsageError(f"masks hide {counts} tokens of a clip; the mask ratio of the objective says {hidden}")
    order = masked.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : masked.shape[1] - hidden], order[:, masked.shape[1] - hidden :]


def _decode(
    decoder: Decoder,
    to_decoder: nn.Linear,
    mask_token: Tensor,
    features: Sequence[Tensor],
    split: tuple[Tensor, Tensor],
    keep: Tensor | None,
) -> Tensor:
    """Fused tokens and skips (each (B, Nv, D)) -> predictions (B, Nh, P) for the hidden tokens."""
    visible, hidden = split
    seen, *skips = [feature + decoder.positions[visible] for feature in map(to_decoder, features)]
    asked = (mask_token + decoder.positions[hidden]).to(seen.dtype)
    return decoder(torch.cat([seen, asked], dim=1), hidden.shape[1], skips, keep)


def _pool(normed: dict[int, Tensor], levels: Sequence[int]) -> Tensor | None:
    """Token means of some levels (L, B, D)."""
    return torch.stack([normed[level].mean(1) for level in levels]) if levels else None


def xavier(module: nn.Module) -> None:
    """The release's initial weights of linear maps; norms keep ones and zeros."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _volume(encoder: EncoderConfig) -> int:
    return encoder.tubelet_frames * encoder.patch_px**2
