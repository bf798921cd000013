"""Weights in the authors' format: every published size loads and comes back out; what does not fit is listed, once."""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from hicmae import presets
from hicmae.config import HeadConfig, ObjectiveConfig
from hicmae.errors import HicmaeError
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.official import (
    initialise_from_pretrain,
    load_official,
    read_checkpoint,
    save_official,
    to_official,
    to_shapes,
)
from hicmae.model.pretrain import HiCMAEPretrain

WIDTHS = {256: "tiny", 384: "small", 512: "base"}


def pretrain_model(size: str) -> HiCMAEPretrain:
    config = presets.pretrain(size)
    return HiCMAEPretrain(config.encoder, config.decoder, config.objective)


def finetune_model(size: str, **head: object) -> HiCMAEClassifier:
    return HiCMAEClassifier(presets.ENCODERS[size], HeadConfig(**head))  # type: ignore[arg-type]


def random_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", ["pretrain_dim384", "pretrain_dim512", "finetune_dim256", "finetune_dim384", "finetune_dim512"])
def test_the_published_names_and_shapes_load_and_come_back(reference: Path, name: str) -> None:
    keys = json.loads((reference / "official" / "state_dict_keys.json").read_text())[name]
    stage, width = name.split("_dim")
    size = WIDTHS[int(width)]
    model = pretrain_model(size) if stage == "pretrain" else finetune_model(size)
    state = random_state({key: tuple(shape) for key, shape in keys.items()})
    load_official(model, state)
    assert same(to_official(model), state)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_weights_survive_a_file(tmp_path: Path, name: str) -> None:
    model, other = pretrain_model("smoke"), pretrain_model("smoke")
    save_official(model, tmp_path / name)
    load_official(other, tmp_path / name)
    assert same(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("container", ["model", "module", None])
def test_a_state_dict_is_found_under_model_or_module_or_bare(tmp_path: Path, container: str | None) -> None:
    state = random_state({"a.weight": (2, 3)})
    torch.save({container: state, "epoch": 99} if container else state, tmp_path / "c.pth")
    assert same(read_checkpoint(tmp_path / "c.pth"), state)


def test_the_command_line_that_the_release_saves_beside_the_weights_does_no_harm(tmp_path: Path) -> None:
    state = random_state({"a.weight": (2, 3)})
    arguments = argparse.Namespace(model="pretrain_hicmae_dim512_patch16_160_a256", lr=3e-4, opt_betas=[0.9, 0.95])
    torch.save({"model": state, "optimizer": {"state": {}}, "epoch": 99, "args": arguments}, tmp_path / "c.pth")
    assert same(read_checkpoint(tmp_path / "c.pth"), state)


class Harmful:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    torch.save({"model": random_state({"a": (1,)}), "extra": Harmful(tmp_path / "made")}, tmp_path / "c.pth")
    with pytest.raises(HicmaeError, match=r"c\.pth: holds something that is no tensor and could run code; refused") as caught:
        read_checkpoint(tmp_path / "c.pth")
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "made").exists()


def test_files_that_are_no_checkpoints_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "words.pth").write_text("hello world")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": {"a": 1, "b": torch.zeros(1)}}, tmp_path / "numbers.pth")
    torch.save({}, tmp_path / "nothing.pth")
    save_official(pretrain_model("smoke"), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    torch.save({"a": torch.zeros(9000)}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "legacy.pth").read_bytes()
    for count in (5, 30, 200, 1000):
        (tmp_path / f"legacy{count}.pth").write_bytes(whole[:count])
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other.pth")
    reasons = {
        "absent.pth": "no such checkpoint file",
        "text.pth": "cannot be read.*a cut file, or none of torch",
        "words.pth": "cannot be read.*a cut file, or none of this kind",
        "empty.pth": "is empty",
        **{f"legacy{count}.pth": r"cannot be read as a checkpoint \(\w" for count in (5, 30, 200, 1000)},
        "other.pth": "cannot be read.*a cut file, or none of torch",
        "text.safetensors": "cannot be read",
        "cut.pth": "cannot be read",
        "list.pth": "holds a list, not a state dict",
        "nothing.pth": "not a state dict",
        "numbers.pth": "these entries are no tensors: a",
    }
    for name, reason in reasons.items():
        with pytest.raises(HicmaeError, match=reason) as caught:
            read_checkpoint(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "()" not in str(caught.value)


ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": Tensor.to_sparse,
    "meta": lambda value: value.to("meta"),
    "complex": lambda value: value.to(torch.complex64),
}


@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_no_plain_numbers_are_named(tmp_path: Path, kind: str) -> None:
    torch.save({"a.weight": torch.ones(2), "b.weight": ODD[kind](torch.ones(2))}, tmp_path / "odd.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(HicmaeError, match=r"odd\.pth: sparse, quantized, complex or without values: b\.weight;"):
            read_checkpoint(tmp_path / "odd.pth")


def test_the_prefix_of_parallel_training_is_dropped(tmp_path: Path) -> None:
    state = random_state({"a.weight": (2, 3), "module.b": (1,)})
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "ddp.pth")
    assert same(read_checkpoint(tmp_path / "ddp.pth"), state)


def test_everything_that_does_not_fit_is_listed_in_one_line() -> None:
    model = finetune_model("smoke")
    state = to_official(model)
    del state["encoder.norm.bias"]
    state["encoder.extra"] = torch.zeros(1)
    state["head.weight"] = torch.zeros(7, 256)
    state["fc_norm.bias"][3] = float("nan")
    with pytest.raises(HicmaeError) as caught:
        load_official(model, state)
    message = str(caught.value)
    assert "1 missing: encoder.norm.bias" in message
    assert "1 unexpected: encoder.extra" in message
    assert "1 misshapen: head.weight 7x256 (wanted 6x256)" in message
    assert "1 not finite: fc_norm.bias" in message
    assert "\n" not in message


def test_a_long_list_is_cut_with_its_count() -> None:
    with pytest.raises(HicmaeError, match=r"\d+ missing: .* and \d+ more"):
        load_official(pretrain_model("smoke"), {"head.weight": torch.zeros(1)})


def test_a_refused_file_leaves_the_model_as_it_was() -> None:
    model = finetune_model("smoke")
    before = to_official(model)
    with pytest.raises(HicmaeError):
        load_official(model, {**random_state(to_shapes(model)), "more": torch.zeros(1)})
    assert same(to_official(model), before)


@pytest.mark.parametrize(
    ("modality", "parts"), [("AV", {"encoder", "encoder_audio", "encoder_fusion"}), ("A", {"encoder_audio"})]
)
def test_finetuning_starts_from_the_encoders_of_pretraining(modality: str, parts: set[str]) -> None:
    pretrained, classifier = pretrain_model("smoke"), finetune_model("smoke", modality=modality)
    new = initialise_from_pretrain(classifier, to_official(pretrained))
    state, source = to_official(classifier), to_official(pretrained)
    taken = {name for name in state if name not in new}
    assert {name.split(".")[0] for name in taken} == parts
    assert all(torch.equal(state[name], source[name]) for name in taken)
    assert {name.split(".")[0] for name in new} <= {"video_layer_weights", "audio_layer_weights", "fc_norm", "head"}


def test_pretraining_without_skip_connections_starts_finetuning_too() -> None:
    config = presets.pretrain("smoke")
    objective = ObjectiveConfig(levels=(), contrastive="last", video_mask_ratio=0.75)
    decoder = type(config.decoder)(dim=48, heads=2, depth=3, skip_connections=False)
    pretrained = HiCMAEPretrain(config.encoder, decoder, objective)
    classifier = finetune_model("smoke")
    initialise_from_pretrain(classifier, to_official(pretrained))
    assert torch.equal(classifier.encoder.norm.weight, pretrained.encoder.norm.weight)


def test_a_finetuning_checkpoint_is_no_start_for_finetuning() -> None:
    with pytest.raises(HicmaeError, match=r"6 unexpected: video_layer_weights, audio_layer_weights, fc_norm"):
        initialise_from_pretrain(finetune_model("smoke"), to_official(finetune_model("smoke")))


def test_a_modality_that_the_checkpoint_lacks_is_refused() -> None:
    sound_only = {name: value for name, value in to_official(pretrain_model("smoke")).items() if "audio" in name}
    with pytest.raises(HicmaeError, match=r"missing: encoder\.patch_embed"):
        initialise_from_pretrain(finetune_model("smoke", modality="V"), sound_only)


def test_safetensors_holds_the_authors_names(tmp_path: Path) -> None:
    model: nn.Module = finetune_model("smoke")
    save_official(model, tmp_path / "w.safetensors")
    assert set(safetensors.torch.load_file(tmp_path / "w.safetensors")) == set(to_shapes(model))
