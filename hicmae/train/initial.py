"""Where fine-tuning starts: new weights, a pre-training run beside the run, or a checkpoint of the authors' release."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hicmae.config import FinetuneConfig, InitialWeights
from hicmae.data.location import cache_root
from hicmae.errors import UsageError
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.official import initialise_from_pretrain, load_official, read_checkpoint
from hicmae.record import RunRecord, write_json
from hicmae.train.checkpoint import file_digest

_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


def start_from(model: HiCMAEClassifier, config: FinetuneConfig, runs_root: Path) -> None:
    """Give a classifier the weights that its configuration starts from.

    Raises UsageError, naming the remedy, when they are not on this machine, and HicmaeError when they do not fit.
    """
    initial = config.initial
    if initial.source == "scratch":
        return
    path = weights_of_run(config, runs_root) if initial.source == "run" else official_file(initial.reference)
    state = read_checkpoint(path)
    if "fc_norm.weight" in state:  # fine-tuned by the authors
        load_official(model, state, str(path))
    else:
        initialise_from_pretrain(model, state, str(path))


def check_modality(config: FinetuneConfig, runs_root: Path) -> None:
    """Refuse a modality that the weights to start from lack, as soon as they are known: nothing is built and no clip is read.

    Raises ConfigError with the field, the value and what is allowed. Weights that are not on this machine pass.
    """
    wanted, reference = config.head.modality, config.initial.reference
    held = _held_by_run(runs_root / reference) if config.initial.source == "run" else _held_by_file(config.initial)
    if not set(wanted) <= set(held):
        allowed = f"must be {held}" if held else "has no stream to start from"
        config.head.refuse("modality", f"{allowed}; {config.initial.source} {reference} holds no other stream")


def _held_by_run(folder: Path) -> str:
    """The streams of a run that fine-tuning starts from; a pre-training has both."""
    if not (folder / "config.json").is_file():
        return "AV"
    config = RunRecord(folder).config()
    return config.head.modality if isinstance(config, FinetuneConfig) else "AV"


def _held_by_file(initial: InitialWeights) -> str:
    """The streams that the parameter names of an authors' checkpoint show."""
    if initial.source == "scratch":
        return "AV"
    try:
        path = official_file(initial.reference)
    except UsageError:
        return "AV"
    parts = {name.split(".")[0] for name in read_checkpoint(path)}
    return "".join(letter for letter, part in (("A", "encoder_audio"), ("V", "encoder")) if part in parts)


def weights_of_run(config: FinetuneConfig, runs_root: Path) -> Path:
    """The weights of the pre-training run that a fine-tuning starts from."""
    initial = config.initial
    folder = runs_root / initial.reference
    if not folder.is_dir():
        raise UsageError(f"{folder}: the pre-training that this run starts from is not here; launch its study, or copy that run")
    name = "final" if initial.epoch is None else f"epoch-{initial.epoch:04d}"
    path = folder / "checkpoints" / f"{name}.safetensors"
    if path.exists() and (initial.epoch is not None or RunRecord(folder).result() is not None):
        return path
    if RunRecord(folder).result() is None:
        raise UsageError(f"the pre-training {initial.reference} is not done; execute it first: python -m hicmae.run {folder}")
    kept = ", ".join(sorted(other.stem for other in path.parent.glob("epoch-*.safetensors"))) or "none"
    raise UsageError(f"{path}: missing; name the epoch in keep_epochs of the pre-training (kept: {kept})")


def official_file(sha256: str) -> Path:
    """The file with this SHA-256 below $HICMAE_CHECKPOINTS; digests are cached by path, size and time of change."""
    named = os.environ.get("HICMAE_CHECKPOINTS", "")
    files = [path for path in sorted(Path(named).rglob("*")) if path.suffix in _SUFFIXES] if named else []
    for path in files:
        if _cached_digest(path) == sha256.lower():
            return path
    looked = f"none of the {len(files)} checkpoints below {named} is it" if named else "HICMAE_CHECKPOINTS is not set"
    raise UsageError(
        f"this run starts from the checkpoint with SHA-256 {sha256}, and {looked}; put its file into a folder and set "
        "HICMAE_CHECKPOINTS to that folder"
    )


def _cached_digest(path: Path) -> str:
    """Checkpoints are large, and a study of hundreds of runs starts from the same one."""
    cache = cache_root() / "checkpoints.json"
    state = path.stat()
    key, stamp = str(path.absolute()), [state.st_size, state.st_mtime_ns]
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    entry = known.get(key)
    if entry and entry[:2] == stamp:
        return str(entry[2])
    digest = file_digest(path)
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_json(cache, {**known, key: [*stamp, digest]})
    return digest
