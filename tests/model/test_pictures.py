"""Pictures show what they say: perfect predictions restore the clip, attention sums to one, files are real PNGs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from hicmae.config import DecoderConfig, EncoderConfig, HeadConfig, ObjectiveConfig
from hicmae.errors import UsageError
from hicmae.model import pictures
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.losses import audio_targets, video_targets
from hicmae.model.masking import audio_mask, video_mask
from hicmae.model.pretrain import HiCMAEPretrain, PretrainOutput, split_tokens

ENCODER = EncoderConfig(
    dim=16, heads=2, depth=2, fusion_depth=1, fusion_heads=2, image_px=32, frames=4, audio_frames=48, mel_bins=32
)


def clip() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(3, 4, 32, 32, generator=generator)
    mean, std = (torch.tensor(v)[:, None, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (video - mean) / std, torch.randn(1, 48, 32, generator=generator)


class Perfect(HiCMAEPretrain):
    """Predicts the targets themselves."""

    def forward(self, video: Tensor, audio: Tensor, masked_video: Tensor, masked_audio: Tensor, drop_keep: Any = None) -> Any:
        _, hidden_video = split_tokens(masked_video, self.hidden_video)
        _, hidden_audio = split_tokens(masked_audio, self.hidden_audio)
        pred_video = video_targets(video, ENCODER, hidden_video, self.objective.frame_difference_group)
        pred_audio = audio_targets(audio, ENCODER, hidden_audio)
        return PretrainOutput(pred_video, pred_audio, None, None, hidden_video, hidden_audio)


def images(figure: pictures.Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


@pytest.mark.parametrize("group", [0, 2])
def test_perfect_predictions_restore_the_clip(group: int) -> None:
    objective = ObjectiveConfig(levels=(1, 2), video_mask_ratio=0.5, frame_difference_group=group)
    model = Perfect(ENCODER, DecoderConfig(12, 2, 3), objective)
    video, audio = clip()
    random = np.random.default_rng(0)
    masks = [torch.from_numpy(make(ENCODER, objective, random)) for make in (video_mask, audio_mask)]
    shown = images(pictures.reconstruction(model, video, audio, *masks))
    films, spectrograms = np.stack(shown[:12]).reshape(3, 4, 32, 32, 3), shown[12:]
    assert np.allclose(films[2], films[0], atol=1e-3)
    hidden = films[1] == 0.5
    assert hidden.mean() == pytest.approx(0.5, abs=0.01)
    assert np.array_equal(films[1][~hidden], films[0][~hidden])
    assert np.allclose(spectrograms[2], spectrograms[0], atol=1e-4)
    assert np.isnan(spectrograms[1]).mean() == pytest.approx(masks[1].float().mean().item())


def test_rows_say_which_stream_and_what_they_show() -> None:
    objective = ObjectiveConfig(levels=(1, 2), video_mask_ratio=0.5)
    model = HiCMAEPretrain(ENCODER, DecoderConfig(12, 2, 3), objective)
    masks = [torch.from_numpy(make(ENCODER, objective, np.random.default_rng(0))) for make in (video_mask, audio_mask)]
    figure = pictures.reconstruction(model, *clip(), *masks)
    rows = [axes.get_ylabel().split("\n") for axes in figure.axes if axes.get_ylabel()]
    assert rows == [[stream, what] for stream in ("video", "sound") for what in ("input", "masked", "output")]


def test_attention_to_the_sound_has_a_row_and_a_scale_of_its_own() -> None:
    model = HiCMAEClassifier(ENCODER, HeadConfig()).eval()
    video, audio = clip()
    _, on_audio = pictures.cross_attention(model, video, audio)
    figure = pictures.attention(model, video, audio)
    sound, heat = (axes.images[0] for axes in figure.axes if axes.get_ylabel() == "mel bin")
    assert np.array_equal(sound.get_array(), audio[0].T)
    assert np.allclose(np.asarray(heat.get_array()), on_audio.T * on_audio.numel())
    assert heat.get_alpha() is None  # nothing shines through, so a colour can be read off its bar
    assert [axes.get_ylabel() for axes in figure.axes if "read by video" in axes.get_ylabel()] == ["read by video\n(1 = uniform)"]


def test_cross_attention_is_a_share_of_the_other_stream_s_tokens() -> None:
    torch.manual_seed(0)
    model = HiCMAEClassifier(ENCODER, HeadConfig()).eval()
    video, audio = clip()
    on_video, on_audio = pictures.cross_attention(model, video, audio)
    assert on_video.shape == (2, 2, 2)
    assert on_audio.shape == (3, 2)
    assert on_video.sum().item() == pytest.approx(1, abs=1e-5)
    assert on_audio.sum().item() == pytest.approx(1, abs=1e-5)
    blocks = (model.encoder_fusion.blocks[-1], model.encoder_fusion.blocks_audio[-1])
    assert not any(block.cross_attn._forward_pre_hooks for block in blocks)


def test_attention_finds_the_token_that_all_queries_agree_on() -> None:
    torch.manual_seed(0)
    model = HiCMAEClassifier(ENCODER, HeadConfig()).eval()
    asked = model.encoder_fusion.blocks[-1].cross_attn
    seen: list[Tensor] = []
    asked.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    pictures.cross_attention(model, *clip())
    with torch.no_grad():  # every query points at the key of audio token 4
        key = asked.kv.weight[:16] @ seen[0][0, 4]
        asked.q.weight.zero_()
        asked.q_bias.copy_(200 * key)
    _, on_audio = pictures.cross_attention(model, *clip())
    assert on_audio.flatten().argmax().item() == 4
    assert on_audio.max() > 0.5


def test_one_stream_has_no_attention_to_the_other() -> None:
    with pytest.raises(UsageError, match="no fusion layers"):
        pictures.attention(HiCMAEClassifier(ENCODER, HeadConfig(modality="V")), *clip())


def test_layer_weights_are_the_model_s() -> None:
    model = HiCMAEClassifier(ENCODER, HeadConfig())
    with torch.no_grad():
        model.get_parameter("video_layer_weights").copy_(torch.tensor([0.0, 1.0]))
    heights = [bar.get_height() for bar in pictures.layer_weights(model).axes[0].patches]
    assert heights == pytest.approx([0.2689, 0.7311, 0.5, 0.5], abs=1e-4)
    with pytest.raises(UsageError, match="no layer weights"):
        pictures.layer_weights(HiCMAEClassifier(ENCODER, HeadConfig(feature_fusion="last")))


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_map_keeps_separate_groups_apart(method: str) -> None:
    random = np.random.default_rng(0)
    features = np.concatenate([random.normal(centre, 0.1, (12, 20)) for centre in (0, 5)])
    figure = pictures.feature_map(features, ["a"] * 12 + ["b"] * 12, method)
    first, second = (np.asarray(group.get_offsets()) for group in figure.axes[0].collections)
    apart = np.linalg.norm(first.mean(0) - second.mean(0))
    assert apart > 3 * max(first.std(0).max(), second.std(0).max())


@pytest.mark.parametrize(
    ("title", "start"), [("", "Features before the head"), ("Features of 6 test clips", "Features of 6 test clips")]
)
def test_a_map_says_how_it_was_made(title: str, start: str) -> None:
    features = np.diag([3.0, 2, 1, 0, 0, 0]) - np.diag([3.0, 2, 1, 0, 0, 0])[::-1]
    figure = pictures.feature_map(features, ["$x_^$"] * 6, title=title)
    assert re.fullmatch(rf"{start}, PCA, \d+ % of the variance", figure.axes[0].get_title())
    figure.draw_without_rendering()  # a name is no formula


def test_a_map_needs_points_and_a_known_method() -> None:
    with pytest.raises(UsageError, match="at least 3 samples, not 2"):
        pictures.feature_map(np.zeros((2, 4)), ["a", "b"])
    with pytest.raises(UsageError, match="unknown method 'umap'"):
        pictures.feature_map(np.zeros((4, 4)), ["a"] * 4, "umap")


def test_pictures_are_saved_as_png(tmp_path: Path) -> None:
    model: nn.Module = HiCMAEClassifier(ENCODER, HeadConfig())
    path = pictures.save(pictures.attention(model, *clip()), tmp_path / "new" / "attention.png")  # type: ignore[arg-type]
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def test_a_picture_that_cannot_be_written_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(figure: Figure, file: Path, **_: object) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    older = pictures.save(Figure(), tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        pictures.save(Figure(), tmp_path / "a.png")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", older)]
