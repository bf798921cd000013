"""The pre-training model: nothing leaks from hidden tokens, every switch does what it says, the model is a pure function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drop_masks import drawn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hicmae.config import DecoderConfig, EncoderConfig, ObjectiveConfig
from hicmae.errors import UsageError
from hicmae.model.layers import (
    FusionEncoder,
    PatchEmbed,
    patch_view,
    set_activation_checkpointing,
    sine_positions,
    take_patches,
)
from hicmae.model.losses import pretrain_loss
from hicmae.model.masking import audio_mask, video_mask
from hicmae.model.pretrain import HiCMAEPretrain, split_tokens

Inputs = dict[str, Tensor]


def encoder_config(**changes: Any) -> EncoderConfig:
    sizes = {"dim": 16, "heads": 2, "depth": 3, "fusion_depth": 1, "fusion_heads": 4, "frames": 4}
    return EncoderConfig(**{**sizes, "image_px": 48, "audio_frames": 64, "mel_bins": 32, **changes})


def build(encoder: EncoderConfig | None = None, decoder: dict[str, Any] | None = None, **objective: Any) -> HiCMAEPretrain:
    torch.manual_seed(0)
    settings = {"levels": (2, 3), "video_mask_ratio": 0.7, "audio_mask_ratio": 0.7, **objective}
    decoders = DecoderConfig(**{"dim": 12, "heads": 2, "depth": 3, **(decoder or {})})
    return HiCMAEPretrain(encoder or encoder_config(), decoders, ObjectiveConfig(**settings))


def inputs(model: HiCMAEPretrain, batch: int = 3) -> Inputs:
    generator, torch_generator = np.random.default_rng(1), torch.Generator().manual_seed(1)
    config, objective = model.encoder_config, model.objective
    video = (batch, 3, config.frames, config.image_px, config.image_px)
    return {
        "video": torch.randn(video, generator=torch_generator),
        "audio": torch.randn(batch, 1, config.audio_frames, config.mel_bins, generator=torch_generator),
        "masked_video": torch.from_numpy(np.stack([video_mask(config, objective, generator) for _ in range(batch)])),
        "masked_audio": torch.from_numpy(np.stack([audio_mask(config, objective, generator) for _ in range(batch)])),
    }


def step(model: HiCMAEPretrain, given: Inputs, keep: Tensor | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses, and the gradient of every parameter that has one."""
    model.zero_grad()
    losses = pretrain_loss(model(**given, drop_keep=keep), given, model.objective, model.encoder_config)
    losses["loss"].backward()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def hide(given: Inputs, model: HiCMAEPretrain, value: float) -> Inputs:
    """The inputs with `value` at every hidden place."""
    video, audio = given["video"].clone(), given["audio"].clone()
    video_view = patch_view(video, (2, 16, 16))
    video_view[given["masked_video"].reshape(video_view.shape[:4])] = value
    audio_view = patch_view(audio.unsqueeze(2), (1, 16, 16))
    audio_view[given["masked_audio"].reshape(audio_view.shape[:4])] = value
    return {**given, "video": video, "audio": audio}


def test_hidden_pixels_and_sound_change_no_prediction() -> None:
    model = build()
    given = inputs(model)
    other = hide(given, model, 9.0)
    assert not torch.equal(other["video"], given["video"])
    assert not torch.equal(other["audio"], given["audio"])
    for ours, changed in zip(model(**given), model(**other), strict=True):
        assert torch.equal(ours, changed)


def test_visible_sound_changes_the_predicted_video_and_the_other_way_round() -> None:
    model = build()
    given = inputs(model)
    base = model(**given)
    assert not torch.allclose(model(**{**given, "audio": given["audio"] + 1}).pred_video, base.pred_video)
    assert not torch.allclose(model(**{**given, "video": given["video"] * 2}).pred_audio, base.pred_audio)


SWITCHES: dict[str, dict[str, Any]] = {
    "paper": {},
    "no skips": {"decoder": {"skip_connections": False}},
    "no skips, other depth": {"decoder": {"skip_connections": False, "depth": 1}},
    "no contrast": {"contrastive": "none"},
    "last contrast": {"contrastive": "last"},
    "nothing": {"decoder": {"skip_connections": False}, "contrastive": "none", "levels": ()},
    "pixels": {"frame_difference_group": 0},
    "random and time masks": {"video_mask": "random", "audio_mask": "time"},
    "frequency mask": {"audio_mask": "frequency"},
    "audio first": {"encoder": encoder_config(fusion_flow="audio_first")},
    "video first": {"encoder": encoder_config(fusion_flow="video_first")},
    "no fusion": {"encoder": encoder_config(fusion_depth=0)},
    "long tubelets": {"encoder": encoder_config(tubelet_frames=4), "frame_difference_group": 4},
    "small patches": {"encoder": encoder_config(patch_px=8)},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_trains_every_parameter(name: str) -> None:
    model = build(**SWITCHES[name])
    losses, gradients = step(model, inputs(model))
    assert torch.isfinite(losses["loss"])
    idle = [n for n, p in model.named_parameters() if n not in gradients or not gradients[n].abs().sum() > 0]
    assert idle == []


def test_without_skip_connections_the_decoders_are_plain_self_attention() -> None:
    names = [n for n, _ in build(decoder={"skip_connections": False}).named_parameters() if n.startswith("decoder")]
    assert not any("cross" in name for name in names)
    assert any("decoder.blocks.1.cross_attn" in n for n, _ in build().named_parameters())


def test_skip_connections_bring_the_deepest_level_to_the_second_block() -> None:
    model = build()
    given = inputs(model)
    seen: list[Tensor] = []
    for i in (1, 2):
        model.decoder.blocks[i].register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    model(**given)
    visible, _ = split_tokens(given["masked_video"], model.hidden_video)
    outputs = model.encoder(given["video"], visible)
    for context, level in zip(seen, (3, 2), strict=True):
        wanted = model.encoder_to_decoder(model.encoder.norm(outputs[level - 1])) + model.decoder.positions[visible]
        assert torch.allclose(context, wanted, atol=1e-6)


@pytest.mark.parametrize(("kind", "levels"), [("none", 0), ("last", 1), ("hierarchical", 2)])
def test_contrast_takes_no_level_the_last_or_all_chosen_ones(kind: str, levels: int) -> None:
    model = build(contrastive=kind)
    given = inputs(model)
    output = model(**given)
    losses = pretrain_loss(output, given, model.objective, model.encoder_config)
    reconstruction = losses["loss_video"] + losses["loss_audio"]
    if output.video_levels is None:
        assert levels == 0
        assert losses["loss_contrastive"].item() == 0
        assert torch.equal(losses["loss"], reconstruction)
        return
    assert output.video_levels.shape == (levels, 3, 16)
    assert torch.allclose(losses["loss"], reconstruction + 0.0025 * losses["loss_contrastive"])
    visible, _ = split_tokens(given["masked_audio"], model.hidden_audio)
    last = model.encoder_audio.norm(model.encoder_audio(given["audio"], visible)[-1]).mean(1)
    assert torch.allclose(output.audio_levels[-1], last, atol=1e-6)


def test_fusion_flows_differ_in_which_tokens_a_stream_reads() -> None:
    video, audio = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    flows = {}
    for flow in ("parallel", "audio_first", "video_first"):
        torch.manual_seed(0)
        flows[flow] = FusionEncoder(encoder_config(fusion_flow=flow))(video, audio)
    both, audio_first, video_first = (flows[name] for name in ("parallel", "audio_first", "video_first"))
    assert torch.equal(audio_first[1], both[1])
    assert not torch.allclose(audio_first[0], both[0])
    assert torch.equal(video_first[0], both[0])
    assert not torch.allclose(video_first[1], both[1])


def test_without_fusion_layers_the_streams_do_not_meet() -> None:
    model = build(encoder_config(fusion_depth=0))
    given = inputs(model)
    base, other = model(**given), model(**{**given, "audio": given["audio"] + 1})
    assert torch.equal(base.pred_video, other.pred_video)
    assert not torch.allclose(base.pred_audio, other.pred_audio)


def test_activation_checkpointing_changes_nothing_but_memory() -> None:
    model = build()
    given = inputs(model)
    keep = drawn(model.drop_keep_plan(0.5), 3)
    losses, gradients = step(model, given, keep)
    set_activation_checkpointing(model)
    calls = []
    model.encoder.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    again, recomputed = step(model, given, keep)
    assert len(calls) == 2  # forward, and once more in the backward pass
    assert torch.equal(losses["loss"], again["loss"])
    assert all(torch.equal(gradients[name], recomputed[name]) for name in gradients)


def test_the_model_is_a_pure_function_of_its_inputs() -> None:
    model = build()
    given, state = inputs(model), torch.get_rng_state()
    first, second = step(model.train(), given), step(model.eval(), given)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0]["loss"], second[0]["loss"])


def test_the_release_s_drop_rates_rise_with_depth_in_every_part() -> None:
    plan = build().drop_keep_plan(0.3)
    encoder, fusion, decoder = [0, 0, 0.15, 0.15, 0.3, 0.3], [0] * 3, [0, 0, *[0.15] * 3, *[0.3] * 3]
    assert plan == pytest.approx([*encoder, *encoder, *fusion, *fusion, *decoder, *decoder])


def test_keeping_every_branch_is_no_drop_and_dropping_all_leaves_the_embedding() -> None:
    model = build()
    given = inputs(model)
    rows = len(model.drop_keep_plan(0.1))
    kept, plain = model(**given, drop_keep=torch.ones(rows, 3)), model(**given)
    assert all(torch.equal(a, b) for a, b in zip(kept, plain, strict=True))
    dropped = model(**given, drop_keep=torch.zeros(rows, 3))
    visible, _ = split_tokens(given["masked_video"], model.hidden_video)
    assert torch.allclose(dropped.video_levels[0], model.encoder.norm(model.encoder.embed(given["video"], visible)).mean(1))


def test_one_dropped_branch_of_one_clip_changes_that_clip_alone() -> None:
    model = build()
    given = inputs(model)
    keep = torch.ones(len(model.drop_keep_plan(0.1)), 3)
    keep[3, 1] = 0
    base, changed = model(**given), model(**given, drop_keep=keep)
    same = [torch.allclose(base.pred_video[i], changed.pred_video[i], atol=1e-6) for i in range(3)]
    assert same == [True, False, True]


def test_a_mask_with_another_number_of_hidden_tokens_is_refused() -> None:
    model = build()
    given = inputs(model)
    given["masked_audio"][1] = True
    with pytest.raises(UsageError, match="masks hide"):
        model(**given)


@given(st.lists(st.permutations([True] * 5 + [False] * 3), min_size=1, max_size=4))
def test_tokens_are_split_in_rising_order(rows: list[list[bool]]) -> None:
    masked = torch.tensor(rows)
    visible, hidden = split_tokens(masked, 5)
    for row, seen, unseen in zip(masked, visible, hidden, strict=True):
        assert seen.tolist() == (~row).nonzero().flatten().tolist()
        assert unseen.tolist() == row.nonzero().flatten().tolist()


def test_embedding_visible_patches_equals_the_convolution_of_all() -> None:
    embed = PatchEmbed(encoder_config(), "video")
    video = torch.randn(2, 3, 4, 48, 48)
    everything = F.conv3d(video, embed.proj.weight, embed.proj.bias, stride=(2, 16, 16)).flatten(2).transpose(1, 2)
    index = torch.tensor([[0, 5, 17], [3, 3, 11]])
    assert torch.allclose(embed(video), everything, atol=1e-5)
    assert torch.allclose(embed(video, index), everything[torch.arange(2)[:, None], index], atol=1e-5)
    sound, embed = torch.randn(2, 1, 64, 32), PatchEmbed(encoder_config(), "audio")
    flat = F.conv2d(sound, embed.proj.weight, embed.proj.bias, stride=16).flatten(2).transpose(1, 2)
    assert torch.allclose(embed(sound), flat, atol=1e-5)


def test_patches_come_in_the_order_time_height_width() -> None:
    numbered = torch.arange(2 * 2 * 3.0).reshape(1, 1, 2, 2, 3).repeat_interleave(2, 3).repeat_interleave(2, 4)
    patches = take_patches(patch_view(numbered, (1, 2, 2)))
    assert patches[0, :, 0].tolist() == list(range(12))


def test_positions_are_the_sines_and_cosines_of_the_transformer_paper() -> None:
    positions = sine_positions(6, 8)
    for token in range(6):
        for i in range(4):
            angle = token / 10000 ** (2 * i / 8)
            assert positions[token, 2 * i].item() == pytest.approx(np.sin(angle), abs=1e-6)
            assert positions[token, 2 * i + 1].item() == pytest.approx(np.cos(angle), abs=1e-6)
