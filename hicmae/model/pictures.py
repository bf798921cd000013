"""Looking at a model: reconstructions, layer weights, attention between the streams, maps of features. `hicmae pictures`.

Every function returns a matplotlib Figure; `save` writes a PNG. No display is needed.

Legend: B batch, N tokens, T frames, H height, W width, F spectrogram steps, M mel bins, P values of a patch, L layers, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hicmae.config import EncoderConfig
from hicmae.errors import UsageError
from hicmae.metrics import Floats
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.layers import Block, patch_view, take_patches
from hicmae.model.pretrain import HiCMAEPretrain
from hicmae.whole import write_png

_MEAN, _STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet's
FEWEST = 3  # samples in a map of features
_SHOWN_FRAMES = 8
_GREY = 0.5
_DPI = 130
_AS_WRITTEN: Any = {"text.parse_math": False}  # a $ in the name of a file is no formula


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, whole or not at all, making its folder."""
    return write_png(figure, path, dpi=_DPI, bbox_inches="tight")


@mpl.rc_context(_AS_WRITTEN)
@torch.inference_mode()
def reconstruction(
    model: HiCMAEPretrain, video: Tensor, audio: Tensor, masked_video: Tensor, masked_audio: Tensor, title: str = ""
) -> Figure:
    """Input, input with its masks, and output, for one clip: (3, T, H, W), (1, F, M) and masks (N,).

    The model predicts patches without their mean and deviation; those are taken from the input, as in the MAE papers.
    """
    output = model(video[None], audio[None], masked_video[None], masked_audio[None])
    encoder, group = model.encoder_config, model.objective.frame_difference_group
    frames = _restored_video(output.pred_video[0], video, masked_video, encoder, group)
    sound = _restored_audio(output.pred_audio[0], audio, masked_audio, encoder)
    seen_video, seen_audio = _covered(video, audio, masked_video, masked_audio, encoder)
    figure = Figure(figsize=(14, 9), layout="constrained")
    if title:
        figure.suptitle(title)
    top, bottom = _halves(figure, (1.1, 1))
    _film(top, [("video\ninput", _pixels(video)), ("video\nmasked", seen_video), ("video\noutput", frames)])
    _spectrograms(bottom, [("sound\ninput", audio[0]), ("sound\nmasked", seen_audio), ("sound\noutput", sound)])
    return figure


def layer_weights(model: HiCMAEClassifier, title: str = "Weights of the layers in feature fusion") -> Figure:
    """Bars of the learnt weights of every stream. Raises UsageError for a model that takes the last layer alone."""
    weights = model.layer_weights()
    if not weights:
        raise UsageError("this model has no layer weights: it was built with feature_fusion = 'last'")
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes, width = figure.subplots(), 0.8 / len(weights)
    for i, (stream, values) in enumerate(weights.items()):
        layers = np.arange(1, len(values) + 1)
        axes.bar(layers + (i - (len(weights) - 1) / 2) * width, values.detach().cpu().numpy(), width, label=stream)
    axes.axhline(1 / len(layers), color="0.4", linewidth=1, linestyle=":", label="equal weights")
    axes.set(xlabel="layer of the encoder", ylabel="weight", title=title, xticks=layers)
    axes.legend(frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
    return figure


@torch.inference_mode()
def cross_attention(model: HiCMAEClassifier, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """What each stream reads of the other in the last fusion layer, mean over heads and asking tokens.

    For one clip (3, T, H, W), (1, F, M): the attention that video tokens get (t, h, w) and that audio tokens get (t, m);
    each sums to 1. Raises UsageError for a model without fusion layers.
    """
    if model.head_config.modality != "AV" or not model.encoder_fusion.blocks:
        raise UsageError("this model has no fusion layers: attention between the streams needs modality AV and fusion_depth > 0")
    fusion, caught = model.encoder_fusion, {}
    last: dict[str, Block] = {"audio": fusion.blocks[-1], "video": fusion.blocks_audio[-1]}  # type: ignore[dict-item]
    handles = [
        block.cross_attn.register_forward_pre_hook(lambda _, args, stream=stream: caught.update({stream: args}))
        for stream, block in last.items()
    ]
    try:
        model(video[None], audio[None])
    finally:
        for handle in handles:
            handle.remove()
    read = {stream: _attention_read(block, *caught[stream]) for stream, block in last.items()}
    encoder = model.encoder_config
    return read["video"].reshape(encoder.video_grid), read["audio"].reshape(encoder.audio_grid)


@mpl.rc_context(_AS_WRITTEN)
def attention(model: HiCMAEClassifier, video: Tensor, audio: Tensor, title: str = "") -> Figure:
    """Where the sound looks in the video, over its frames, and where the video listens in the sound, below its spectrogram."""
    on_video, on_audio = cross_attention(model, video, audio)
    encoder = model.encoder_config
    figure = Figure(figsize=(14, 6.4), layout="constrained")
    figure.suptitle(title or "Attention between the streams, last fusion layer")
    top, bottom = _halves(figure, (1, 1.5))
    slices = _spread(encoder.video_grid[0])
    for axes, t in zip(top.subplots(1, len(slices), squeeze=False)[0], slices, strict=True):
        axes.imshow(_pixels(video)[t * encoder.tubelet_frames])
        heat = on_video[t] * math.prod(encoder.video_grid)
        extent = (-0.5, encoder.image_px - 0.5, encoder.image_px - 0.5, -0.5)
        shown = axes.imshow(
            heat, cmap="inferno", alpha=0.55, extent=extent, interpolation="bilinear", vmin=0, vmax=_top(on_video)
        )
        _plain(axes, f"frame {t * encoder.tubelet_frames}")
    top.colorbar(shown, ax=top.axes, label="read by sound\n(1 = uniform)")
    heard, read = bottom.subplots(2, 1, sharex=True)
    extent = (-0.5, encoder.audio_frames - 0.5, -0.5, encoder.mel_bins - 0.5)
    sound = heard.imshow(audio[0].T, origin="lower", aspect="auto", cmap="gray", extent=extent)
    bottom.colorbar(sound, ax=heard, label="sound\n(normalised)")
    heat = on_audio.T * on_audio.numel()
    tokens = read.imshow(heat, cmap="inferno", extent=extent, origin="lower", aspect="auto", vmin=0, vmax=_top(on_audio))
    bottom.colorbar(tokens, ax=read, label="read by video\n(1 = uniform)")
    heard.set(ylabel="mel bin")
    read.set(xlabel="time (10 ms)", ylabel="mel bin")
    return figure


@mpl.rc_context(_AS_WRITTEN)
def feature_map(features: ArrayLike, labels: Sequence[str], method: str = "pca", seed: int = 0, title: str = "") -> Figure:
    """Features (S, W) in two dimensions by PCA or t-SNE, coloured by label; the title ends with how.

    Raises UsageError for fewer than 3 samples.
    """
    points, share = _flat(np.asarray(features, dtype=np.float64), method, seed)
    figure = Figure(figsize=(6.5, 5.5), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(labels))
    colours = mpl.colormaps["tab10" if len(names) <= 10 else "turbo"]
    for i, name in enumerate(names):
        chosen = np.array([label == name for label in labels])
        colour = colours(i) if len(names) <= 10 else colours(i / (len(names) - 1))
        axes.scatter(points[chosen, 0], points[chosen, 1], s=18, color=colour, label=name, alpha=0.85)
    axes.set(title=f"{title or 'Features before the head'}, {share}", xticks=[], yticks=[])
    axes.legend(frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
    return figure


def _flat(features: Floats, method: str, seed: int) -> tuple[Floats, str]:
    """(S, W) -> (S, 2), and how."""
    if len(features) < FEWEST:
        raise UsageError(f"a map of features needs at least {FEWEST} samples, not {len(features)}")
    if method == "pca":
        return _principal(features)
    if method != "tsne":
        raise UsageError(f"unknown method {method!r}; valid: pca, tsne")
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    return tsne.fit_transform(features), f"t-SNE, perplexity {perplexity:.0f}"


def _principal(features: Floats) -> tuple[Floats, str]:
    """The two principal components. By numpy: every run draws this, and importing scikit-learn takes a second."""
    left, sizes, _ = np.linalg.svd(features - features.mean(0), full_matrices=False)
    share = (sizes[:2] ** 2).sum() / max((sizes**2).sum(), np.finfo(np.float64).tiny)
    return left[:, :2] * sizes[:2], f"PCA, {100 * share:.0f} % of the variance"


def _restored_video(pred: Tensor, video: Tensor, masked: Tensor, encoder: EncoderConfig, group: int) -> NDArray[np.float32]:
    """Predictions (Nh, P) in the places of the hidden tubelets -> frames (T, H, W, 3) in 0 to 1."""
    patch = (encoder.tubelet_frames, encoder.patch_px, encoder.patch_px)
    pixels = take_patches(patch_view(video[None], patch, channels_last=True))[0].unflatten(-1, (-1, 3))  # (N, P / 3, 3)
    std, mean = torch.std_mean(pixels[masked], dim=1, keepdim=True)
    values = pred.float().unflatten(-1, (-1, 3))
    if group:
        frames = values.unflatten(1, (-1, group, encoder.patch_px**2))  # (Nh, groups, frames, positions, 3)
        frames = torch.cat([frames[:, :, :1], frames[:, :, 1:] + frames[:, :, :1]], dim=2)
        values = frames.flatten(1, 3)
    restored = pixels.index_put((masked,), values * std + mean)
    cut = restored.reshape(*encoder.video_grid, *patch, 3).permute(6, 0, 3, 1, 4, 2, 5)  # (3, t, pt, h, ph, w, pw)
    return _pixels(cut.flatten(5, 6).flatten(3, 4).flatten(1, 2))


def _restored_audio(pred: Tensor, audio: Tensor, masked: Tensor, encoder: EncoderConfig) -> Tensor:
    """Predictions (Nh, P) in the places of the hidden patches -> spectrogram (F, M)."""
    side = encoder.patch_px
    patches = take_patches(patch_view(audio[None, :, None], (1, side, side)))[0]  # (N, P)
    std, mean = torch.std_mean(patches[masked], dim=-1, keepdim=True)
    restored = patches.index_put((masked,), pred.float() * std + mean)
    return restored.reshape(*encoder.audio_grid, side, side).permute(0, 2, 1, 3).reshape(audio.shape[1:])


def _covered(
    video: Tensor, audio: Tensor, masked_video: Tensor, masked_audio: Tensor, encoder: EncoderConfig
) -> tuple[NDArray[np.float32], Tensor]:
    """The clip with its hidden tokens in grey (video) or blank (sound)."""
    time, side, patch = encoder.video_grid[0], encoder.video_grid[1], encoder.patch_px
    hidden = masked_video.reshape(time, side, side).repeat_interleave(encoder.tubelet_frames, 0)
    hidden = hidden.repeat_interleave(patch, 1).repeat_interleave(patch, 2)  # (T, H, W)
    frames = np.where(hidden.numpy()[..., None], np.float32(_GREY), _pixels(video))
    silent = masked_audio.reshape(encoder.audio_grid).repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    return frames, audio[0].masked_fill(silent, float("nan"))


def _pixels(video: Tensor) -> NDArray[np.float32]:
    """(3, T, H, W), normalised -> (T, H, W, 3) in 0 to 1."""
    shown = video.float() * _STD[:, None, None, None] + _MEAN[:, None, None, None]
    return shown.clamp(0, 1).permute(1, 2, 3, 0).cpu().numpy()


def _attention_read(block: Block, x: Tensor, context: Tensor) -> Tensor:
    """How much every context token is read (N,), mean over heads and queries."""
    query, key, _ = block.cross_attn.queries_keys_values(x, context)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, H, N, M)
    return scores.softmax(-1).mean((0, 1, 2))


def _halves(figure: Figure, heights: tuple[float, float]) -> tuple[SubFigure, SubFigure]:
    upper, lower = np.asarray(figure.subfigures(2, 1, height_ratios=heights))
    return upper, lower


def _film(figure: SubFigure, rows: Sequence[tuple[str, NDArray[np.float32]]]) -> None:
    """Rows of evenly spread frames."""
    chosen = _spread(len(rows[0][1]))
    grid = figure.subplots(len(rows), len(chosen), squeeze=False)
    for row, (line, (name, frames)) in enumerate(zip(grid, rows, strict=True)):
        for axes, t in zip(line, chosen, strict=True):
            axes.imshow(frames[t])
            _plain(axes, "" if row else f"frame {t}")
        line[0].set_ylabel(name)


def _spectrograms(figure: SubFigure, rows: Sequence[tuple[str, Tensor]]) -> None:
    low, high = (float(value) for value in rows[0][1].aminmax())
    for axes, (name, values) in zip(figure.subplots(len(rows), 1), rows, strict=True):
        axes.set_facecolor(str(_GREY))
        axes.imshow(values.T, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high)
        _plain(axes, "")
        axes.set_ylabel(name)


def _plain(axes: Axes, title: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8)


def _spread(count: int) -> list[int]:
    return [round(i) for i in np.linspace(0, count - 1, min(count, _SHOWN_FRAMES))]


def _top(share: Tensor) -> float:
    return float(share.max() * share.numel())
