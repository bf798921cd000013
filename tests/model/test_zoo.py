"""Models by name: presets, run directories, checkpoints whose architecture is read off their shapes; timm; summaries."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

import hicmae
from hicmae import presets
from hicmae.config import EncoderConfig, HeadConfig, RunConfig, change
from hicmae.errors import HicmaeError, UsageError
from hicmae.model import timm_models
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.official import save_official, to_shapes
from hicmae.model.pretrain import HiCMAEPretrain
from hicmae.model.summary import count_parameters, summarise
from hicmae.model.zoo import as_classifier, build, infer_config, load, open_model, pick_device
from hicmae.record import RunRecord


def recorded(root: Path, config: RunConfig, weights: str | None = "final") -> tuple[RunRecord, torch.nn.Module]:
    """A run directory with the weights that a run leaves behind."""
    record, model = RunRecord.create(root, config), build(config)
    if weights:
        save_official(model, record.path / "checkpoints" / f"{weights}.safetensors")
    return record, model


def inputs(encoder: EncoderConfig) -> tuple[Tensor, Tensor]:
    side = encoder.image_px
    return torch.randn(1, 3, encoder.frames, side, side), torch.randn(1, 1, encoder.audio_frames, encoder.mel_bins)


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_preset_gives_a_new_model() -> None:
    model = hicmae.load("smoke", outputs=8)
    assert isinstance(model, HiCMAEClassifier)
    assert not model.training
    assert model.head.out_features == 8
    assert isinstance(hicmae.load("hicmae_smoke", stage="pretrain"), HiCMAEPretrain)


def test_importing_hicmae_does_not_import_torch() -> None:
    code = "import sys, hicmae; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("make", [lambda: presets.pretrain("smoke"), lambda: presets.finetune("smoke", outputs=4)])
def test_a_run_directory_gives_the_weights_that_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], RunConfig]
) -> None:
    record, model = recorded(tmp_path, make())
    assert equal(load(record.path), model)
    monkeypatch.setenv("HICMAE_RUNS", str(tmp_path))
    assert equal(load(record.id), model)
    assert open_model(record.id).config == make()


def test_a_pretraining_run_gives_the_epochs_that_it_kept(tmp_path: Path) -> None:
    record, model = recorded(tmp_path, presets.pretrain("smoke"), "epoch-0004")
    assert equal(load(record.path, epoch=4), model)
    with pytest.raises(HicmaeError, match=r"epoch-0005.*kept epochs \[4\]"):
        load(record.path, epoch=5)


def test_a_run_that_is_not_done_says_so(tmp_path: Path) -> None:
    record, _ = recorded(tmp_path, presets.finetune("smoke"), None)
    with pytest.raises(HicmaeError, match=r"final\.safetensors: no such weights; the run is new"):
        load(record.path)


ARCHITECTURES: dict[str, RunConfig] = {
    **{f"pretrain {size}": presets.pretrain(size) for size in ("smoke", "tiny", "small", "base")},
    **{f"finetune {size}": presets.finetune(size) for size in ("smoke", "tiny", "small", "base")},
    "no skips": change(presets.pretrain("smoke"), {"decoder.skip_connections": False, "objective.contrastive": "last"}),
    "one stream": change(presets.finetune("smoke"), {"head.modality": "A"}),
    "last layer": change(presets.finetune("smoke"), {"head.feature_fusion": "last"}),
    "no fusion": change(presets.finetune("smoke"), {"encoder.fusion_depth": 0}),
    "shallow": change(presets.pretrain("smoke"), {"decoder.depth": 2, "objective.levels": (4,), "encoder.mlp_ratio": 2.0}),
    "regression": presets.finetune_regression("smoke", outputs=1),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_architecture_of_a_checkpoint_is_read_off_its_shapes(name: str) -> None:
    wanted = ARCHITECTURES[name]
    with torch.device("meta"):
        model = build(wanted)
        again = infer_config(model.state_dict())
        assert to_shapes(build(again)) == to_shapes(model)
    assert again.encoder == wanted.encoder
    if wanted.stage == "pretrain":
        assert again.decoder == wanted.decoder
        if wanted.decoder.skip_connections:
            assert again.objective.levels == wanted.objective.levels
    else:
        assert again.head == wanted.head


def test_a_loaded_checkpoint_answers_as_the_model_that_wrote_it(tmp_path: Path) -> None:
    config = presets.finetune("smoke", outputs=3)
    model = build(config).eval()
    save_official(model, tmp_path / "weights.pth")
    video, audio = inputs(config.encoder)
    with pytest.warns(UserWarning, match=r"weights\.pth: its shapes do not say its configuration; assumed: heads: 2"):
        loaded = hicmae.load(tmp_path / "weights.pth")
    assert torch.equal(loaded(video, audio), model(video, audio))


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3, 3)}, tmp_path / "resnet.pth")
    with pytest.raises(HicmaeError, match=r"resnet\.pth: .* encoder\.norm\.weight is missing \(found: conv1\)"):
        hicmae.load(tmp_path / "resnet.pth")


DAMAGE: dict[str, tuple[str, Tensor | None, str]] = {
    "a fault of the values": ("head.weight", torch.full((6, 256), torch.nan), "1 not finite: head.weight"),
    "a missing key": ("head.weight", None, "1 missing: head.weight"),
    "a missing key that tells a size": ("head.bias", None, "head.bias is missing .found: .*encoder_fusion, fc_norm, head,"),
    "a number as a bias": ("head.bias", torch.tensor(1.0), "cannot be read off"),
    "a number as a norm": ("encoder.norm.weight", torch.tensor(1.0), "cannot be read off"),
    "a norm of nothing": ("encoder.norm.weight", torch.zeros(0), "cannot be read off"),
    "a flat kernel": ("encoder.patch_embed.proj.weight", torch.zeros(3), "cannot be read off"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    key, value, reason = DAMAGE[name]
    state = {**build(presets.finetune("smoke")).state_dict(), key: value}
    torch.save({"model": {key: value for key, value in state.items() if value is not None}}, tmp_path / "w.pth")
    with pytest.raises(HicmaeError, match=rf"w\.pth: .*{reason}") as caught:
        hicmae.load(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_what_does_not_apply_is_refused(tmp_path: Path) -> None:
    record, model = recorded(tmp_path, config := presets.finetune("smoke"))
    save_official(model, file := tmp_path / "w.pth")
    for source, given in (
        (record.path, {"outputs": 9}),
        (record.path, {"stage": "pretrain"}),
        (record.path, {"config": config}),
        (file, {"epoch": 2}),
        (file, {"outputs": 3}),
        (file, {"stage": "finetune"}),
        ("base", {"config": config}),
        ("base", {"epoch": 3}),
        ("smoke", {"stage": "pretrain", "outputs": 3}),
    ):
        with pytest.raises(UsageError, match=rf"{list(given)[-1]} cannot be given: .*; leave it out"):
            hicmae.load(source, **given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"modality A is for pre-trained models: .* was fine-tuned with AV; leave it out"):
        as_classifier(open_model(file), "A")


def test_an_unknown_name_lists_the_sizes() -> None:
    with pytest.raises(UsageError, match=r"unknown model .* 'bas'; valid, nearest first: base"):
        hicmae.load("bas")
    with pytest.raises(UsageError, match="unknown stage 'finetuning'; valid, nearest first: finetune"):
        hicmae.load("base", stage="finetuning")


def test_a_pretrained_model_gives_features_as_finetuning_would_start_with() -> None:
    loaded = open_model("smoke", stage="pretrain")
    classifier = as_classifier(loaded)
    assert torch.equal(classifier.encoder.norm.weight, loaded.model.encoder.norm.weight)
    assert classifier.features(*inputs(loaded.config.encoder)).shape == (1, 4 * loaded.config.encoder.dim)


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device().type in ("cpu", "cuda")
    for name in ("gpu", "meta", "mps", "xpu:0", "cuda:", "cuda:-1", ""):
        with pytest.raises(UsageError, match=f"unknown device '{name}'"):
            pick_device(name)
    with pytest.raises(UsageError, match="no CUDA device"):
        pick_device("cuda:999")


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_timm_knows_the_sizes(size: str) -> None:
    assert f"hicmae_{size}" in timm.list_models("hicmae_*")
    with torch.device("meta"):
        model = timm.create_model(f"hicmae_{size}", num_classes=11, modality="V")
        wanted = HiCMAEClassifier(presets.ENCODERS[size], HeadConfig(outputs=11, modality="V"))
    assert to_shapes(model) == to_shapes(wanted)
    assert size in timm_models.__all__[0] + timm_models.__all__[1] + timm_models.__all__[2]


def test_timm_models_give_features_without_classes() -> None:
    encoder = presets.ENCODERS["tiny"]
    model = timm.create_model("hicmae_tiny", num_classes=0).eval()
    assert (model.num_classes, model.num_features) == (0, 4 * encoder.dim)
    video, audio = inputs(encoder)
    assert torch.equal(model(video, audio), model.features(video, audio))
    with torch.device("meta"):
        assert timm.create_model("hicmae_tiny", num_classes=8).num_classes == 8


@pytest.mark.parametrize("option", ["features_only", "drop_path_rate", "in_chans", "img_size"])
def test_options_of_timm_that_the_models_lack_are_named(option: str) -> None:
    with pytest.raises(UsageError, match=rf"unknown option of hicmae_tiny '{option}'; valid, nearest first: .*num_classes"):
        timm.create_model("hicmae_tiny", **{option: 1})


def test_timm_loads_a_checkpoint_and_hosts_none(tmp_path: Path) -> None:
    config = presets.finetune("tiny")
    save_official(model := build(config), tmp_path / "weights.safetensors")
    assert equal(timm.create_model("hicmae_tiny", num_classes=6, checkpoint_path=str(tmp_path / "weights.safetensors")), model)
    with pytest.raises(UsageError, match="no weights of HiCMAE are hosted"):
        timm.create_model("hicmae_tiny", pretrained=True)


@pytest.mark.parametrize(("size", "pretrain"), [("small", 50584576), ("base", 99609344)])
def test_pretraining_models_have_the_release_s_number_of_parameters(size: str, pretrain: int) -> None:
    with torch.device("meta"):
        assert sum(count_parameters(build(presets.pretrain(size))).values()) == pretrain


def test_operations_equal_a_count_by_hand() -> None:
    """Linear maps and attention of the smoke model in fine-tuning; two operations to a multiply-add."""
    encoder, outputs = presets.ENCODERS["smoke"], 4
    dim, patch = encoder.dim, encoder.patch_px**2
    counts = math.prod(encoder.video_grid), math.prod(encoder.audio_grid)
    streams = {"video": (counts[0], encoder.tubelet_frames * patch * 3), "audio": (counts[1], patch)}
    total = 4 * dim * outputs
    for tokens, values in streams.values():
        others = sum(counts) - tokens
        total += tokens * values * dim
        total += encoder.depth * dim  # the weighted mean of layers
        total += encoder.depth * (tokens * 12 * dim * dim + 2 * tokens * tokens * dim)
        total += tokens * 12 * dim * dim + 2 * tokens * tokens * dim  # fusion: self-attention and MLP
        total += 2 * tokens * dim * dim + 2 * others * dim * dim + 2 * tokens * others * dim  # and cross-attention
    assert summarise("smoke", outputs)[1].forward_flops == 2 * total


def test_hidden_tokens_cost_the_encoders_nothing() -> None:
    pretrain, finetune = summarise("smoke")
    assert pretrain.forward_flops < finetune.forward_flops
    assert finetune.step_flops == pytest.approx(3 * finetune.forward_flops, rel=0.1)
