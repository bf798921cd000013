"""Models by name: `hicmae.load(...)` gives one from a run directory, a checkpoint of the authors, or a preset.

    model = hicmae.load("runs/0123456789abcdef")           # the weights that a run left behind
    model = hicmae.load("hicmae_base_crema_d.pth")         # the architecture is read off the shapes
    model = hicmae.load("base", outputs=8)                 # new weights

A file of `hicmae weights` says its configuration. Others do not say everything: heads are 64 wide unless a preset of that
width says otherwise, input sizes and how clips are seen are the preset's, and the levels of skip connections are spread evenly
up to the last layer. `load` warns of that; give `config` where it is wrong.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    from_dict,
    to_dict,
)
from hicmae.errors import ConfigError, HicmaeError, UsageError, raise_unknown
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.official import initialise_from_pretrain, load_official, read_file, save_official
from hicmae.model.pretrain import HiCMAEPretrain
from hicmae.record import RunRecord, runs_root

Model = HiCMAEPretrain | HiCMAEClassifier
State = Mapping[str, Tensor]
HEAD_WIDTH = 64
_SHOWN = 12


@dataclass(frozen=True)
class Loaded:
    """A model with the configuration that built it; `config.data.corpus` is "" where no corpus is known.

    `classes` are the names of its outputs where its file says them; `assumed` is one line about what its file does not say.
    """

    model: Model
    config: RunConfig
    source: str
    classes: tuple[str, ...] = ()
    assumed: str = ""


def load(
    source: str | Path,
    *,
    config: RunConfig | None = None,
    stage: str | None = None,
    outputs: int | None = None,
    epoch: int | None = None,
) -> Model:
    """A model in evaluation mode on the CPU, from a run directory or run id, a checkpoint file, or a preset's name.

    `config` says the architecture of a checkpoint where its file does not; `stage` ("finetune" unless it is given) and
    `outputs` (6) are for presets; `epoch` asks a pre-training run for the weights that it kept after that epoch. Warns of what
    is assumed of a checkpoint. Raises UsageError for a name that nothing answers to and for what does not apply to it, and
    HicmaeError for weights that do not fit.
    """
    loaded = open_model(source, config=config, stage=stage, outputs=outputs, epoch=epoch)
    if loaded.assumed:
        warnings.warn(loaded.assumed, stacklevel=2)
    return loaded.model


def open_model(
    source: str | Path,
    *,
    config: RunConfig | None = None,
    stage: str | None = None,
    outputs: int | None = None,
    epoch: int | None = None,
) -> Loaded:
    """As `load`, with the configuration, and without a warning."""
    path = Path(source)
    options = {"config": config, "stage": stage, "outputs": outputs, "epoch": epoch}
    given = {name for name, value in options.items() if value is not None}
    record = next((place for place in (path, runs_root() / path.name) if (place / "config.json").is_file()), None)
    if record is not None:
        _refuse(given - {"epoch"}, f"{source} is a run, which says it itself")
        return _from_run(RunRecord(record), epoch)
    if path.is_file():
        _refuse(given - {"config"}, f"{source} is a file, which takes `config` alone")
        return _from_file(path, config)
    preset = _from_preset(str(source), stage or "finetune", 6 if outputs is None else outputs)
    _refuse(given - {"stage", "outputs"}, f"{source} is a size, which takes `stage` and `outputs`")
    if outputs is not None and preset.config.stage == "pretrain":
        _refuse({"outputs"}, "a pre-trained model has no head")
    return preset


def _refuse(names: set[str], why: str) -> None:
    if names:
        raise UsageError(f"{' and '.join(sorted(names))} cannot be given: {why}; leave {'it' if len(names) == 1 else 'them'} out")


def save_model(loaded: Loaded, path: Path, classes: Sequence[str] = ()) -> None:
    """Write a model for the authors' code, with its configuration, if known, and its outputs' names. Raises OSError."""
    known = {"config": to_dict(loaded.config), "classes": list(classes)}
    save_official(loaded.model, path, None if loaded.assumed else known)


def build(config: RunConfig) -> Model:
    """The model of a configuration with new weights."""
    if isinstance(config, PretrainConfig):
        return HiCMAEPretrain(config.encoder, config.decoder, config.objective)
    return HiCMAEClassifier(config.encoder, config.head)


def as_classifier(loaded: Loaded, modality: str | None = None) -> HiCMAEClassifier:
    """The model itself, or for a pre-trained one the fine-tuning model that starts from it: its `features` are ready.

    `modality` is for a pre-trained one, AV unless it is given; raises UsageError where a fine-tuned one has another.
    """
    if isinstance(loaded.model, HiCMAEClassifier):
        own = loaded.model.head_config.modality
        if modality not in (None, own):
            raise UsageError(
                f"modality {modality} is for pre-trained models: {loaded.source} was fine-tuned with {own}; leave it out"
            )
        return loaded.model
    classifier = HiCMAEClassifier(loaded.config.encoder, HeadConfig(modality=modality or "AV"))
    initialise_from_pretrain(classifier, loaded.model.state_dict())
    return classifier.eval()


def _from_run(record: RunRecord, epoch: int | None) -> Loaded:
    config = record.config()
    name = "final.safetensors" if epoch is None else f"epoch-{epoch:04d}.safetensors"
    weights = record.path / "checkpoints" / name
    if not weights.is_file():
        kept = sorted(int(path.stem[6:]) for path in weights.parent.glob("epoch-*.safetensors"))
        state = record.state()
        remedy = "launch it to the end"
        if state == "done":
            remedy = "copy the file back" if epoch is None else "name a kept epoch, or none for the last weights"
        raise HicmaeError(f"{weights}: no such weights; the run is {state} and kept epochs {kept or 'none'}; {remedy}")
    model = build(config)
    load_official(model, weights)
    return Loaded(model.eval(), config, str(record.path))


def _from_file(path: Path, config: RunConfig | None) -> Loaded:
    state, about = read_file(path)
    written = None if config else _written(path, about)
    known = config or written or infer_config(state, str(path))
    model = build(known)
    load_official(model, state, str(path))
    assumed = "" if config or written else _assumed(path, known)
    return Loaded(model.eval(), known, str(path), _classes(about), assumed)


def _written(path: Path, about: Mapping[str, Any]) -> RunConfig | None:
    """The configuration in a file. Raises HicmaeError for one that this version cannot use."""
    if "config" not in about:
        return None
    try:
        return from_dict(about["config"])
    except (HicmaeError, AttributeError, TypeError) as error:
        raise HicmaeError(f"{path}: the configuration in it cannot be used ({error}); give `config`, or weights alone") from None


def _classes(about: Mapping[str, Any]) -> tuple[str, ...]:
    names = about.get("classes")
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _assumed(path: Path, config: RunConfig) -> str:
    """One line about what a file of another program leaves open."""
    encoder = config.encoder
    parts = [
        f"heads: {encoder.heads}",
        f"{encoder.image_px} px, {encoder.frames} frames at a stride of {config.data.stride_frames}",
    ]
    parts += [f"{encoder.audio_frames} x {encoder.mel_bins} of sound", f"{encoder.fusion_flow} fusion"]
    if isinstance(config, PretrainConfig):
        parts.append(f"levels {' '.join(map(str, config.objective.levels))}")
    return (
        f"{path}: its shapes do not say its configuration; assumed: {', '.join(parts)} (a run, or `hicmae weights RUN`, says it)"
    )


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
    except KeyError as error:
        found = sorted({key.split(".")[0] for key in state})
        raise HicmaeError(
            f"{name}: the architecture cannot be read off its names and shapes: {error.args[0]} is missing "
            f"(found: {', '.join(found[:_SHOWN])}{' ...' if len(found) > _SHOWN else ''}); give a checkpoint of HiCMAE"
        ) from None
    except (IndexError, TypeError, ZeroDivisionError, ConfigError) as error:
        raise HicmaeError(f"{name}: the architecture cannot be read off its names and shapes ({error}); give `config`") from None


def _encoder(state: State) -> EncoderConfig:
    one = "encoder_audio" if "encoder_audio.norm.weight" in state and "encoder.norm.weight" not in state else "encoder"
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
    """A torch device; "auto" is CUDA where there is one. Raises UsageError for any but the CPU and the CUDA devices here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise UsageError(f"unknown device {name!r}; valid: auto, cpu, cuda, cuda:0, ...")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is available here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"no CUDA device {device.index} here; use --device cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return device
