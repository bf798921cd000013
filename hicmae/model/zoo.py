"""Models by name: `hicmae.load(...)` gives one from a run directory, a checkpoint of the authors, or a preset.

    model = hicmae.load("runs/0123456789abcdef")           # the weights that a run left behind
    model = hicmae.load("hicmae_base_crema_d.pth")         # the architecture is read off the shapes
    model = hicmae.load("base", outputs=8)                 # new weights

A checkpoint does not say everything: heads are 64 wide unless a preset of that width says otherwise, input sizes are the
preset's, and the levels of skip connections are spread evenly up to the last layer. Give `config` where that is wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hicmae import presets
from hicmae.config import (
    STAGES,
    DecoderConfig,
    EncoderConfig,
    HeadConfig,
    ObjectiveConfig,
    PretrainConfig,
    RunConfig,
)
from hicmae.errors import ConfigError, HicmaeError, UsageError, raise_unknown
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.official import initialise_from_pretrain, load_official, read_checkpoint
from hicmae.model.pretrain import HiCMAEPretrain
from hicmae.record import RunRecord, runs_root

Model = HiCMAEPretrain | HiCMAEClassifier
State = Mapping[str, Tensor]
HEAD_WIDTH = 64


@dataclass(frozen=True)
class Loaded:
    """A model with the configuration that built it; `config.data.corpus` is "" where no corpus is known."""

    model: Model
    config: RunConfig
    source: str


def load(
    source: str | Path,
    *,
    config: RunConfig | None = None,
    stage: str = "finetune",
    outputs: int = 6,
    epoch: int | None = None,
) -> Model:
    """A model in evaluation mode on the CPU, from a run directory or run id, a checkpoint file, or a preset's name.

    `config` says the architecture of a checkpoint where its shapes do not; `stage` and `outputs` are for presets; `epoch`
    asks a pre-training run for the weights that it kept after that epoch. Raises UsageError for a name that nothing answers
    to and HicmaeError for weights that do not fit.
    """
    return open_model(source, config=config, stage=stage, outputs=outputs, epoch=epoch).model


def open_model(
    source: str | Path,
    *,
    config: RunConfig | None = None,
    stage: str = "finetune",
    outputs: int = 6,
    epoch: int | None = None,
) -> Loaded:
    """As `load`, with the configuration."""
    path = Path(source)
    record = next((place for place in (path, runs_root() / path.name) if (place / "config.json").is_file()), None)
    if record is not None:
        return _from_run(RunRecord(record), epoch)
    return _from_file(path, config) if path.is_file() else _from_preset(str(source), stage, outputs)


def build(config: RunConfig) -> Model:
    """The model of a configuration with new weights."""
    if isinstance(config, PretrainConfig):
        return HiCMAEPretrain(config.encoder, config.decoder, config.objective)
    return HiCMAEClassifier(config.encoder, config.head)


def as_classifier(loaded: Loaded, modality: str = "AV") -> HiCMAEClassifier:
    """The model itself, or for a pre-trained one the fine-tuning model that starts from it: its `features` are ready."""
    if isinstance(loaded.model, HiCMAEClassifier):
        return loaded.model
    classifier = HiCMAEClassifier(loaded.config.encoder, HeadConfig(modality=modality))
    initialise_from_pretrain(classifier, loaded.model.state_dict())
    return classifier.eval()


def _from_run(record: RunRecord, epoch: int | None) -> Loaded:
    config = record.config()
    name = "final.safetensors" if epoch is None else f"epoch-{epoch:04d}.safetensors"
    weights = record.path / "checkpoints" / name
    if not weights.is_file():
        kept = sorted(int(path.stem[6:]) for path in weights.parent.glob("epoch-*.safetensors"))
        raise HicmaeError(
            f"{weights}: no such weights; the run is {record.state()} and kept epochs {kept or 'none'}; launch it to the end"
        )
    model = build(config)
    load_official(model, weights)
    return Loaded(model.eval(), config, str(record.path))


def _from_file(path: Path, config: RunConfig | None) -> Loaded:
    state = read_checkpoint(path)
    config = config or infer_config(state, str(path))
    model = build(config)
    load_official(model, state)
    return Loaded(model.eval(), config, str(path))


def _from_preset(name: str, stage: str, outputs: int) -> Loaded:
    size = name.removeprefix("hicmae_")
    if size not in presets.ENCODERS:
        raise_unknown("model (a run directory, a checkpoint file or a size)", name, presets.ENCODERS)
    if stage not in STAGES:
        raise_unknown("stage", stage, STAGES)
    config = presets.pretrain(size, corpus="") if stage == "pretrain" else presets.finetune(size, "", outputs)
    return Loaded(build(config).eval(), config, size)


def infer_config(state: State, name: str = "state dict") -> RunConfig:
    """The architecture of a state dict from its names and shapes (see the module's text for what they do not say).

    Raises HicmaeError when it is no HiCMAE model.
    """
    try:
        encoder = _encoder(state)
        if "decoder.head.weight" in state:
            decoder, objective = _decoder(state, encoder.depth)
            return dataclasses.replace(presets.pretrain(corpus=""), encoder=encoder, decoder=decoder, objective=objective)
        head = _head(state)
        recipe = presets.finetune if head.task == "classification" else presets.finetune_regression
        return dataclasses.replace(recipe(corpus=""), encoder=encoder, head=head)
    except (KeyError, IndexError, ConfigError) as error:
        raise HicmaeError(f"{name}: the architecture cannot be read off its names and shapes ({error}); give `config`") from None


def _encoder(state: State) -> EncoderConfig:
    one = "encoder" if "encoder.norm.weight" in state else "encoder_audio"
    dim = len(state[f"{one}.norm.weight"])
    known = next((preset for preset in presets.ENCODERS.values() if preset.dim == dim), EncoderConfig())
    heads = known.heads if known.dim == dim else max(1, dim // HEAD_WIDTH)
    kernel = state[f"{one}.patch_embed.proj.weight"].shape
    return dataclasses.replace(
        known,
        dim=dim,
        heads=heads,
        fusion_heads=heads,
        depth=_count(state, f"{one}.blocks."),
        fusion_depth=_count(state, "encoder_fusion.blocks.") if "encoder_fusion.norm.weight" in state else known.fusion_depth,
        mlp_ratio=len(state[f"{one}.blocks.0.mlp.fc1.bias"]) / dim,
        patch_px=kernel[-1],
        tubelet_frames=kernel[2] if one == "encoder" else known.tubelet_frames,
    )


def _decoder(state: State, encoder_depth: int) -> tuple[DecoderConfig, ObjectiveConfig]:
    dim, depth = len(state["decoder.norm.weight"]), _count(state, "decoder.blocks.")
    skips = any("cross_attn" in key for key in state if key.startswith("decoder."))
    heads = next((preset.heads for preset in presets.DECODERS.values() if preset.dim == dim), max(1, dim // HEAD_WIDTH))
    step = -(-(encoder_depth - 1) // max(depth - 1, 1))
    levels = tuple(encoder_depth - step * i for i in reversed(range(depth - 1))) if skips else (encoder_depth,)
    known = next((p for p in map(presets.pretrain, presets.ENCODERS) if p.decoder.dim == dim), presets.pretrain())
    return DecoderConfig(dim, heads, depth, skips), dataclasses.replace(known.objective, levels=levels)


def _head(state: State) -> HeadConfig:
    outputs = len(state["head.bias"])
    streams = "".join(letter for part, letter in (("encoder_audio", "A"), ("encoder", "V")) if f"{part}.norm.weight" in state)
    fusion = "hierarchical" if any(key.endswith("_layer_weights") for key in state) else "last"
    task, loss = ("classification", "cross_entropy") if outputs > 1 else ("regression", "mse")
    return HeadConfig(task=task, outputs=outputs, modality=streams, feature_fusion=fusion, loss=loss)


def _count(state: State, prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def pick_device(name: str = "auto") -> torch.device:
    """A torch device; "auto" is CUDA where there is one. Raises UsageError for a device that torch does not know or have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}; valid: auto, cpu, cuda, cuda:0, ...") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is available here; use --device cpu")
    return device
