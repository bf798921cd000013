"""The building blocks of HiCMAE: patch embedding of chosen tokens, attention, blocks, encoders, the fusion encoder.

Parameter names are those of the authors' release (modeling_pretrain_av.py, modeling_finetune_av.py), so its checkpoints load
as they are. Every module is a pure function: stochastic depth comes in as `keep`, one row per residual branch.

Legend: B batch, N tokens, D width, H heads, C channels, P values of a patch, R residual branches;
T frames or spectrogram steps, and t, h, w the token grid along time, height (or spectrogram time) and width (or mel).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hicmae.config import EncoderConfig


def sine_positions(tokens: int, dim: int) -> Tensor:
    """Sine (even) and cosine (odd) positions (N, D) of Vaswani et al. 2017, over the flattened token index."""
    wavelength = torch.pow(10000, torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] / wavelength
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()  # (N, D/2, 2) -> (N, D)


def patch_view(pixels: Tensor, patch: tuple[int, int, int], channels_last: bool = False) -> Tensor:
    """A view of (B, C, T, H, W) as patches (B, t, h, w, C, *patch), or (B, t, h, w, *patch, C) with `channels_last`."""
    cut = pixels.unflatten(4, (-1, patch[2])).unflatten(3, (-1, patch[1])).unflatten(2, (-1, patch[0]))
    # cut: (B, C, t, pt, h, ph, w, pw)
    return cut.permute(0, 2, 4, 6, 3, 5, 7, 1) if channels_last else cut.permute(0, 2, 4, 6, 1, 3, 5, 7)


def take_patches(view: Tensor, index: Tensor | None = None) -> Tensor:
    """The patches of a `patch_view` as vectors (B, N, P): all of them, or those of `index` (B, n) in its order."""
    if index is None:
        return view.flatten(4).flatten(1, 3)  # (B, t, h, w, P) -> (B, N, P)
    _, _, height, width = view.shape[:4]
    row = torch.arange(len(view), device=index.device)[:, None]
    return view[row, index // (height * width), index // width % height, index % width].flatten(2)


class PatchProjection(nn.Module):
    """The weights of a convolution whose stride is its kernel, applied as a product with ready patches."""

    def __init__(self, channels: int, patch: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, channels, *patch))
        self.bias = nn.Parameter(torch.empty(dim))
        bound = 1 / math.sqrt(channels * math.prod(patch))  # as torch initialises a convolution
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)  # (B, N, P) -> (B, N, D)


class PatchEmbed(nn.Module):
    """Tokens of video (B, 3, T, H, W) or of a spectrogram (B, 1, T, F), all of them or the visible ones only."""

    def __init__(self, config: EncoderConfig, stream: str) -> None:
        super().__init__()
        side = config.patch_px
        self.patch = (config.tubelet_frames, side, side) if stream == "video" else (1, side, side)
        kernel = self.patch if stream == "video" else (side, side)
        self.proj = PatchProjection(3 if stream == "video" else 1, kernel, config.dim)

    def forward(self, pixels: Tensor, index: Tensor | None = None) -> Tensor:
        pixels = pixels if pixels.ndim == 5 else pixels.unsqueeze(2)  # a spectrogram is a film of one frame
        return self.proj(take_patches(patch_view(pixels, self.patch), index))


class Projection(nn.Linear):
    """A linear map whose bias is the caller's: the release keeps the biases of queries and values apart, keys have none."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out, bias=False)

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(input, self.weight, bias)


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(B, N, parts * D) -> `parts` tensors (B, H, N, D / H). Cut in place: the gradient is put together in one copy."""
    return tuple(part.transpose(1, 2) for part in x.unflatten(-1, (parts, heads, -1)).unbind(2))  # (B, N, parts, H, D / H)


class Attention(nn.Module):
    """Multi-head self-attention (B, N, D) -> (B, N, D); with `last`, only the last tokens ask and are returned."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.qkv = Projection(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, ...]:
        """Three tensors (B, H, N, D / H)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        return split_heads(self.qkv(x, bias), 3, self.heads)

    def forward(self, x: Tensor, last: int | None = None) -> Tensor:
        query, key, value = self.queries_keys_values(x)
        query = query if last is None else query[:, :, -last:]
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))  # (B, H, N, D / H) -> (B, N, D)


class CrossAttention(nn.Module):
    """Multi-head attention of (B, N, D) to a context (B, M, D) -> (B, N, D)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.q = Projection(dim, dim)
        self.kv = Projection(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def queries_keys_values(self, x: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        """Queries (B, H, N, D / H), keys and values (B, H, M, D / H)."""
        bias = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        return (*split_heads(self.q(x, self.q_bias), 1, self.heads), *split_heads(self.kv(context, bias), 2, self.heads))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        query, key, value = self.queries_keys_values(x, context)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))  # (B, H, N, D / H) -> (B, N, D)


class Mlp(nn.Module):
    """Two linear maps with GELU in between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def add_branch(x: Tensor, branch: Tensor, keep: Tensor | None, row: int) -> Tensor:
    """The residual sum; `keep` (R, B) scales the branch of every sample (0, or 1 / keep probability)."""
    return x + branch if keep is None else x + branch * keep[row, :, None, None].to(branch.dtype)


class Block(nn.Module):
    """Self-attention and MLP, each after a norm and with a residual; a `cross` block attends to a context first.

    The release's Block and CSBlock. With `last`, only the last tokens of the result are computed and returned.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float, eps: float, cross: bool = False) -> None:
        super().__init__()
        self.branches = 3 if cross else 2
        if cross:
            self.cross_attn = CrossAttention(dim, heads)
            self.cross_norm1 = nn.LayerNorm(dim, eps)
            self.cross_norm2 = nn.LayerNorm(dim, eps)
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, context: Tensor | None = None, keep: Tensor | None = None, last: int | None = None) -> Tensor:
        """(B, N, D), with a context (B, M, D) for cross blocks -> (B, N or last, D)."""
        if context is not None:
            x = add_branch(x, self.cross_attn(self.cross_norm1(x), self.cross_norm2(context)), keep, 0)
        x = add_branch(x if last is None else x[:, -last:], self.attn(self.norm1(x), last), keep, -2)
        return add_branch(x, self.mlp(self.norm2(x)), keep, -1)


class Stack(nn.Module):
    """What the encoders and decoders share: running blocks, with activation checkpointing if `checkpointing` is set."""

    checkpointing = False

    def run(self, block: nn.Module, *inputs: Tensor | int | None) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return block(*inputs)


def branches(blocks: Iterable[nn.Module]) -> int:
    """Residual branches of some blocks: rows of `keep`."""
    return sum(block.branches for block in blocks if isinstance(block, Block))


def split_keep(keep: Tensor | None, rows: Sequence[int]) -> Sequence[Tensor | None]:
    """Cut (R, B) into parts of the given numbers of rows; None for each when nothing is dropped."""
    return [None] * len(rows) if keep is None else keep.split(list(rows))


def drop_rates(blocks: Sequence[nn.Module], rate: float) -> list[float]:
    """The drop rate of every residual branch: rising with depth from 0 to `rate`, equal inside a block (the release's rule)."""
    depth_rates = torch.linspace(0, rate, len(blocks)).tolist()
    return [r for block, r in zip(blocks, depth_rates, strict=True) for _ in range(branches([block]))]


class Encoder(Stack):
    """The encoder of one stream, "video" or "audio" (paper Sec. 3.2.1)."""

    positions: Tensor  # (N, D)

    def __init__(self, config: EncoderConfig, stream: str) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config, stream)
        size = (config.dim, config.heads, config.mlp_ratio, config.norm_eps)
        self.blocks = nn.ModuleList(Block(*size) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, config.norm_eps)
        tokens = math.prod(config.video_grid if stream == "video" else config.audio_grid)
        self.register_buffer("positions", sine_positions(tokens, config.dim), persistent=False)

    def embed(self, pixels: Tensor, visible: Tensor | None = None) -> Tensor:
        """Tokens with positions (B, N, D): all, or those of `visible` (B, N), which alone are computed."""
        tokens = self.patch_embed(pixels, visible)
        return tokens + (self.positions if visible is None else self.positions[visible]).to(tokens.dtype)

    def forward(self, pixels: Tensor, visible: Tensor | None = None, keep: Tensor | None = None) -> list[Tensor]:
        """The output (B, N, D) of every block, before the final norm."""
        x, outputs = self.embed(pixels, visible), []
        for block, rows in zip(self.blocks, split_keep(keep, [branches([block]) for block in self.blocks]), strict=True):
            x = self.run(block, x, None, rows)
            outputs.append(x)
        return outputs


class FusionEncoder(Stack):
    """Cross-modal fusion (paper Sec. 3.2.2): in every layer each stream attends to the other.

    `parallel`: both read the other's tokens from before the layer. `audio_first`: the audio tokens are updated first, and the
    video tokens read the updated ones; `video_first` the other way round. With depth 0 only the two norms remain.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.flow = config.fusion_flow
        size = (config.dim, config.fusion_heads, config.mlp_ratio, config.norm_eps)
        self.blocks = nn.ModuleList(Block(*size, cross=True) for _ in range(config.fusion_depth))
        self.norm = nn.LayerNorm(config.dim, config.norm_eps)
        self.blocks_audio = nn.ModuleList(Block(*size, cross=True) for _ in range(config.fusion_depth))
        self.norm_audio = nn.LayerNorm(config.dim, config.norm_eps)

    def forward(self, video: Tensor, audio: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, Nv, D) and (B, Na, D) -> the same shapes, normalised; rows of `keep`: all video blocks, then all audio blocks."""
        rows = split_keep(keep, [branches([block]) for block in (*self.blocks, *self.blocks_audio)])
        for i, (block, block_audio) in enumerate(zip(self.blocks, self.blocks_audio, strict=True)):
            keep_video, keep_audio = rows[i], rows[len(self.blocks) + i]
            if self.flow == "audio_first":
                audio = self.run(block_audio, audio, video, keep_audio)
                video = self.run(block, video, audio, keep_video)
            elif self.flow == "video_first":
                video = self.run(block, video, audio, keep_video)
                audio = self.run(block_audio, audio, video, keep_audio)
            else:
                before = video
                video = self.run(block, video, audio, keep_video)
                audio = self.run(block_audio, audio, before, keep_audio)
        return self.norm(video), self.norm_audio(audio)


def set_activation_checkpointing(model: nn.Module, on: bool = True) -> None:
    """Recompute every block in the backward pass instead of keeping its activations: less memory, about a third more work."""
    for module in model.modules():
        if isinstance(module, Stack):
            module.checkpointing = on
