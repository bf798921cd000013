"""The weights of the authors' release: reading its checkpoints, loading them, writing them back, starting fine-tuning.

    load_official(model, "checkpoint-99.pth")              # pre-training into pre-training, fine-tuning into fine-tuning
    initialise_from_pretrain(classifier, "checkpoint-99.pth")
    save_official(model, "weights.safetensors", {"config": to_dict(config)})

Parameter names and shapes here are the authors', so nothing is renamed; what this module adds is that a file which does not fit
is refused with one line that lists why, and that a file can say what its shapes do not: as JSON in the metadata of
.safetensors, or beside `model` in a .pth. Files are read with `weights_only=True`: they can run no code.
"""

from __future__ import annotations

import argparse
import json
import pickle
import struct
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hicmae.errors import HicmaeError
from hicmae.model.classify import HiCMAEClassifier
from hicmae.whole import written_whole

State = dict[str, Tensor]
_CONTAINERS = ("model", "module")  # where the release, or DeepSpeed, keeps the state dict inside a file
_PRETRAIN_ONLY = ("decoder", "decoder_audio", "encoder_to_decoder", "encoder_to_decoder_audio", "mask_token", "mask_token_audio")
_LISTED = 12
_ABOUT = "hicmae"  # where a file says what its shapes do not
_WRAPPED = "module."  # torch's DistributedDataParallel puts it before every name
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, LookupError, struct.error, SafetensorError)


class Checkpoint(NamedTuple):
    """A state dict, and what was written beside it; empty in files of other programs."""

    state: State
    about: dict[str, Any]


def read_checkpoint(path: Path | str) -> State:
    """The state dict of a .pth or .safetensors file, on the CPU: under `model`, under `module`, or bare.

    Raises HicmaeError when the file cannot be read or holds no state dict.
    """
    return read_file(path).state


def read_file(path: Path | str) -> Checkpoint:
    """As `read_checkpoint`, with what `save_official` wrote beside the weights."""
    path = Path(path)
    if not path.is_file():
        raise HicmaeError(f"{path}: no such checkpoint file; check the path")
    if path.stat().st_size == 0:
        raise HicmaeError(f"{path}: is empty; copy it again")
    try:
        content, about = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    except pickle.UnpicklingError as error:
        raise HicmaeError(f"{path}: {_refused(error)}") from None
    except _UNREADABLE as error:
        raise HicmaeError(
            f"{path}: cannot be read as a checkpoint ({_reason(error)}); give a .pth or .safetensors file"
        ) from None
    return Checkpoint(_state(path, content), _about(path, about))


def load_official(model: nn.Module, source: Path | str | Mapping[str, Tensor], name: str = "state dict") -> None:
    """Load weights of the same stage and sizes into `model`; `name` says where a state dict comes from.

    Raises HicmaeError, listing them, for missing, unexpected or misshapen keys and for values that are not finite.
    """
    name, state = _named(source, name)
    check_state(name, state, to_shapes(model))
    model.load_state_dict(state)


def to_official(model: nn.Module) -> State:
    """A copy of the model's weights on the CPU under the authors' names, as they stand in `state_dict` of the release."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def save_official(model: nn.Module, path: Path | str, about: Mapping[str, Any] | None = None) -> None:
    """Write the weights for the authors' code, whole or not at all, with `about` beside them as JSON.

    .safetensors bare, any other ending as torch.save of {"model": ...}. Raises OSError.
    """
    path = Path(path)
    beside = {_ABOUT: json.dumps(about, sort_keys=True)} if about else None
    with written_whole(path) as temporary:
        if path.suffix == ".safetensors":
            temporary.write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in to_official(model).items()}, beside))
        else:
            with temporary.open("wb") as file:
                torch.save({"model": to_official(model), **(beside or {})}, file)


def initialise_from_pretrain(
    classifier: HiCMAEClassifier, source: Path | str | Mapping[str, Tensor], name: str = "state dict"
) -> list[str]:
    """Start fine-tuning from a pre-training checkpoint; returns the names of the parameters that stay new.

    Decoders, mask tokens and encoder-to-decoder maps are dropped, and with one modality the parts that it lacks. The layer
    weights, `fc_norm` and `head` are new. Raises HicmaeError, listing them, for anything else that does not fit.
    """
    name, state = _named(source, name)
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


def _named(source: Path | str | Mapping[str, Tensor], name: str) -> tuple[str, Mapping[str, Tensor]]:
    if isinstance(source, (Path, str)):
        return str(source), read_checkpoint(source)
    return name, source


def _torch(path: Path) -> tuple[Any, Any]:
    # The release saves its command line as an argparse.Namespace beside the weights; it is plain data.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle's protocol and sparse tensors: the lines below say what is wrong
        content = torch.load(path, map_location="cpu", weights_only=True)
    return content, content.get(_ABOUT) if isinstance(content, Mapping) else None


def _safetensors(path: Path) -> tuple[Any, Any]:
    with safetensors.safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {}).get(_ABOUT)  # noqa: SIM118


def _refused(error: pickle.UnpicklingError) -> str:
    """Why torch would not unpickle a file, without its advice to do so all the same."""
    if any(word in str(error).lower() for word in ("unsupported global", "unsupported class", "unrecognized")):
        return "holds something that is no tensor and could run code; refused: give a file of weights alone"
    return "cannot be read as a checkpoint (a cut file, or none of torch); give a .pth or .safetensors file"


def _reason(error: Exception) -> str:
    """One line; text and cut files make readers fail without words, or with a number."""
    words = " ".join(str(error).split("\n")[0].split(". ")[0].split())
    is_said = " " in words and not isinstance(error, LookupError)
    return words if is_said else f"{type(error).__name__}: a cut file, or none of this kind"


def _about(path: Path, text: Any) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        about = json.loads(text)
    except (TypeError, ValueError):
        about = None
    if not isinstance(about, dict):
        raise HicmaeError(f"{path}: what stands under {_ABOUT!r} beside the weights is damaged; write the file again")
    return about


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
    odd = [name for name, value in content.items() if not _is_plain(value)]
    if odd:
        raise HicmaeError(
            f"{path}: sparse, quantized, complex or without values: {_listed(odd)}; save plain tensors of real numbers"
        )
    is_wrapped = all(name.startswith(_WRAPPED) for name in content)
    return {name.removeprefix(_WRAPPED) if is_wrapped else name: value for name, value in content.items()}


def _is_plain(value: Tensor) -> bool:
    return value.layout == torch.strided and not (value.is_meta or value.is_complex() or value.is_quantized)


def _by(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _listed(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
