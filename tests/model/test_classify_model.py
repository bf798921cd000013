"""The fine-tuning model: modalities, feature fusion, sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drop_masks import drawn
from torch import Tensor

from hicmae import presets
from hicmae.config import EncoderConfig, HeadConfig
from hicmae.errors import UsageError
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.layers import set_activation_checkpointing
from hicmae.model.losses import finetune_loss

ENCODER = EncoderConfig(
    dim=16, heads=2, depth=3, fusion_depth=1, fusion_heads=2, image_px=32, frames=4, audio_frames=32, mel_bins=32
)


def build(encoder: EncoderConfig = ENCODER, **head: Any) -> HiCMAEClassifier:
    torch.manual_seed(0)
    return HiCMAEClassifier(encoder, HeadConfig(**head))


def clips(batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 4, 32, 32, generator=generator), torch.randn(batch, 1, 32, 32, generator=generator)


@pytest.mark.parametrize("fusion", ["hierarchical", "last"])
@pytest.mark.parametrize(("modality", "width"), [("AV", 64), ("A", 32), ("V", 32)])
def test_every_modality_and_fusion_trains_every_parameter(modality: str, width: int, fusion: str) -> None:
    model = build(modality=modality, feature_fusion=fusion, outputs=5)
    video, audio = clips()
    assert model.features(video, audio).shape == (2, width)
    scores = model(video, audio)
    assert scores.shape == (2, 5)
    finetune_loss(scores, torch.tensor([0, 4]), model.head_config).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    ("modality", "absent"), [("A", {"encoder", "encoder_fusion"}), ("V", {"encoder_audio", "encoder_fusion"})]
)
def test_one_modality_has_no_part_of_the_other(modality: str, absent: set[str]) -> None:
    model = build(modality=modality)
    assert absent.isdisjoint(name for name, _ in model.named_children())
    video, audio = clips()
    given = {"A": (None, audio), "V": (video, None)}[modality]
    assert torch.equal(model(*given), model(video, audio))


def test_a_missing_stream_is_a_usage_error() -> None:
    video, _ = clips()
    with pytest.raises(UsageError, match="takes video and audio; audio is missing"):
        build()(video)


def test_layers_are_mixed_by_weights_that_sum_to_one() -> None:
    model = build()
    weights = model.layer_weights()
    assert {name: value.tolist() for name, value in weights.items()} == {
        name: pytest.approx([1 / 3] * 3) for name in ("video", "audio")
    }
    with torch.no_grad():
        model.get_parameter("video_layer_weights").copy_(torch.tensor([0.0, 5.0, 1.0]))
    assert model.layer_weights()["video"].sum().item() == pytest.approx(1)


def test_all_weight_on_the_last_layer_is_fusion_of_the_last_layer() -> None:
    hierarchical, last = build(), build(feature_fusion="last")
    last.load_state_dict(hierarchical.state_dict(), strict=False)
    with torch.no_grad():
        for name in ("video_layer_weights", "audio_layer_weights"):
            hierarchical.get_parameter(name).copy_(torch.tensor([-200.0, -200.0, 0.0]))
    assert torch.allclose(hierarchical.features(*clips()), last.features(*clips()), atol=1e-6)
    assert last.layer_weights() == {}


def test_the_fused_features_of_a_stream_depend_on_the_other_stream() -> None:
    model = build()
    model.fc_norm = torch.nn.Identity()  # type: ignore[assignment]  # it mixes the parts
    video, audio = clips()
    base, other = (model.features(video, sound).reshape(2, 4, 16) for sound in (audio, audio + 1))
    same = [torch.equal(base[:, i], other[:, i]) for i in range(4)]  # video mix, audio mix, fused video, fused audio
    assert same == [True, False, False, False]


def test_without_fusion_layers_the_normalised_last_layers_take_their_place() -> None:
    model = build(EncoderConfig(**{**ENCODER.__dict__, "fusion_depth": 0}))
    model.fc_norm = torch.nn.Identity()  # type: ignore[assignment]
    video, audio = clips()
    base, other = (model.features(video, sound).reshape(2, 4, 16) for sound in (audio, audio + 1))
    assert [torch.equal(base[:, i], other[:, i]) for i in range(4)] == [True, False, True, False]


def test_a_class_s_score_does_not_depend_on_the_rest_of_the_batch() -> None:
    model = build()
    video, audio = clips(4)
    assert torch.allclose(model(video, audio)[2:3], model(video[2:3], audio[2:3]), atol=1e-5)


def test_drop_rates_and_checkpointing() -> None:
    model = build()
    encoder = [0, 0, 0.05, 0.05, 0.1, 0.1]
    assert model.drop_keep_plan(0.1) == pytest.approx([*encoder, *encoder, *[0] * 6])
    assert build(modality="A").drop_keep_plan(0.1) == pytest.approx(encoder)
    keep = drawn(model.drop_keep_plan(0.8), 2, seed=3)
    plain = model(*clips(), drop_keep=keep)
    assert not torch.allclose(plain, model(*clips()))
    set_activation_checkpointing(model)
    assert torch.equal(model(*clips(), drop_keep=keep), plain)


@pytest.mark.parametrize(("size", "parameters"), [("tiny", 20473370), ("small", 45652250), ("base", 80792602)])
def test_sizes_have_the_published_number_of_parameters(size: str, parameters: int) -> None:
    with torch.device("meta"):
        model = HiCMAEClassifier(presets.ENCODERS[size], HeadConfig(outputs=6))
    assert sum(p.numel() for p in model.parameters()) == parameters
