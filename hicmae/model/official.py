"""The weights of the authors' release: reading its checkpoints, loading them, writing them back, starting fine-tuning.

    load_official(model, "checkpoint-99.pth")              # pre-training into pre-training, fine-tuning into fine-tuning
    initialise_from_pretrain(classifier, "checkpoint-99.pth")
    save_official(model, "weights.safetensors")

Parameter names and shapes here are the authors', so nothing is renamed; what this module adds is that a file which does not fit
is refused with one line that lists why. Files are read with `weights_only=True`: they can run no code.
"""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hicmae.errors import HicmaeError
from hicmae.model.classify import HiCMAEClassifier

State = dict[str, Tensor]
_CONTAINERS = ("model", "module")  # where the release, or DeepSpeed, keeps the state dict inside a file
_PRETRAIN_ONLY = ("decoder", "decoder_audio", "encoder_to_decoder", "encoder_to_decoder_audio", "mask_token", "mask_token_audio")
_LISTED = 12


def read_checkpoint(path: Path | str) -> State:
    """The state dict of a .pth or .safetensors file, on the CPU: under `model`, under `module`, or bare.

    Raises HicmaeError when the file cannot be read or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise HicmaeError(f"{path}: no such checkpoint file; check the path")
    try:
        content = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise HicmaeError(f"{path}: cannot be read as a checkpoint ({reason}); give a .pth or .safetensors file") from None
    return _state(path, content)


def load_official(model: nn.Module, source: Path | str | Mapping[str, Tensor]) -> None:
    """Load weights of the same stage and sizes into `model`.

    Raises HicmaeError, listing them, for missing, unexpected or misshapen keys and for values that are not finite.
    """
    name, state = _named(source)
    check_state(name, state, to_shapes(model))
    model.load_state_dict(state)


def to_official(model: nn.Module) -> State:
    """A copy of the model's weights on the CPU under the authors' names, as they stand in `state_dict` of the release."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def save_official(model: nn.Module, path: Path | str) -> None:
    """Write the weights for the authors' code, whole or not at all.

    .safetensors bare, any other ending as torch.save of {"model": ...}. Raises OSError.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix == ".safetensors":
            temporary.write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in to_official(model).items()}))
        else:
            with temporary.open("wb") as file:
                torch.save({"model": to_official(model)}, file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def initialise_from_pretrain(classifier: HiCMAEClassifier, source: Path | str | Mapping[str, Tensor]) -> list[str]:
    """Start fine-tuning from a pre-training checkpoint; returns the names of the parameters that stay new.

    Decoders, mask tokens and encoder-to-decoder maps are dropped, and with one modality the parts that it lacks. The layer
    weights, `fc_norm` and `head` are new. Raises HicmaeError, listing them, for anything else that does not fit.
    """
    name, state = _named(source)
    shapes = to_shapes(classifier)
    parts = {key.split(".")[0] for key in shapes}
    shared = {key: shape for key, shape in shapes.items() if key.split(".")[0].startswith("encoder")}
    absent = {"encoder", "encoder_audio", "encoder_fusion"} - parts
    dropped = {*_PRETRAIN_ONLY, *absent}
    kept = {key: value for key, value in state.items() if key.split(".")[0] not in dropped}
    check_state(name, kept, shared)
    classifier.load_state_dict(kept, strict=False)
    return [key for key in shapes if key not in shared]


def to_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of everything that a checkpoint of this model holds."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def check_state(name: str, state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise one HicmaeError that lists everything in which a state dict does not fit the wanted names and shapes."""
    common = [key for key in shapes if key in state]
    faults = {
        "missing": [key for key in shapes if key not in state],
        "unexpected": [key for key in state if key not in shapes],
        "misshapen": [
            f"{key} {_by(state[key].shape)} (wanted {_by(shapes[key])})"
            for key in common
            if tuple(state[key].shape) != shapes[key]
        ],
        "not finite": [key for key in common if not bool(torch.isfinite(state[key]).all())],
    }
    found = [f"{len(keys)} {fault}: {_listed(keys)}" for fault, keys in faults.items() if keys]
    if found:
        raise HicmaeError(f"{name}: does not fit the model; {'; '.join(found)}; check stage, size and number of outputs")


def _named(source: Path | str | Mapping[str, Tensor]) -> tuple[str, Mapping[str, Tensor]]:
    if isinstance(source, (Path, str)):
        return str(source), read_checkpoint(source)
    return "state dict", source


def _torch(path: Path) -> Any:
    # The release saves its command line as an argparse.Namespace beside the weights; it is plain data.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _safetensors(path: Path) -> Any:
    return safetensors.torch.load_file(path, device="cpu")


def _state(path: Path, content: Any) -> State:
    for container in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
            break
    if not isinstance(content, Mapping) or not content:
        raise HicmaeError(f"{path}: holds a {type(content).__name__}, not a state dict; looked under 'model', 'module' and bare")
    strange = [str(key) for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if strange:
        raise HicmaeError(f"{path}: is not a state dict; these entries are no tensors: {_listed(strange)}")
    return dict(content)


def _by(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _listed(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
