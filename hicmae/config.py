"""The configuration of a run: frozen dataclasses, canonical JSON and the run id.

A run is a pure function of its configuration, so everything that changes a result is a field here, and nothing that does
not (paths, hosts, worker counts) is. The run id is the hash of all fields, defaults included: when a default changes,
old results do not count as done. A fine-tuning run names the pre-training run that it starts from, so its id depends on that id.

    config = presets.pretrain("base")
    config = change(config, {"objective.contrastive": "last"})
    run_id(config)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from hicmae.checked import Checked, choice, field_types, limited, part
from hicmae.errors import raise_unknown

RUN_ID_LENGTH = 16
# Sections that timm's rand_augment_transform reads; some others it passes over without a word.
_RAND_AUGMENT = r"rand(-((m|n|mmax)\d+|inc[01]|(mstd|p)\d+(\.\d+)?|t(weights|3aw?)))*"


@dataclass(frozen=True)
class EncoderConfig(Checked):
    """The two encoders and the fusion encoder: what pre-training and fine-tuning share (paper Sec. 3.2)."""

    dim: int = limited(512, 4)
    heads: int = limited(8, 1)
    depth: int = limited(10, 1)
    mlp_ratio: float = limited(4.0, 0.25)
    fusion_depth: int = limited(2, 0)
    fusion_heads: int = limited(8, 1)
    fusion_flow: str = choice("parallel", "parallel", "audio_first", "video_first")
    image_px: int = limited(160, 1)
    patch_px: int = limited(16, 2)
    frames: int = limited(16, 1)
    tubelet_frames: int = limited(2, 1)
    audio_frames: int = limited(256, 1)
    mel_bins: int = limited(128, 1)
    norm_eps: float = limited(1e-6, 0)

    @property
    def video_grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        side = self.image_px // self.patch_px
        return self.frames // self.tubelet_frames, side, side

    @property
    def audio_grid(self) -> tuple[int, int]:
        """Tokens along time and mel frequency."""
        return self.audio_frames // self.patch_px, self.mel_bins // self.patch_px

    def rules(self) -> None:
        self.divides("dim", "heads")
        self.divides("dim", "fusion_heads")
        for name in ("image_px", "audio_frames", "mel_bins"):
            self.divides(name, "patch_px")
        self.divides("frames", "tubelet_frames")
        if self.dim % 2:
            self.refuse("dim", "must be even, for sine and cosine positions")


@dataclass(frozen=True)
class DecoderConfig(Checked):
    """The two decoders of pre-training; with skip connections block i > 0 attends to a level of the encoder (Sec. 3.3)."""

    dim: int = limited(384, 2)
    heads: int = limited(6, 1)
    depth: int = limited(4, 1)
    skip_connections: bool = True

    def rules(self) -> None:
        self.divides("dim", "heads")
        if self.dim % 2:
            self.refuse("dim", "must be even, for sine and cosine positions")


@dataclass(frozen=True)
class ObjectiveConfig(Checked):
    """What pre-training minimises: masked reconstruction of both streams plus the weighted contrastive loss (Eq. 6-12)."""

    levels: tuple[int, ...] = (4, 7, 10)  # encoder layers, counted from 1, for skips and contrast
    contrastive: str = choice("hierarchical", "none", "last", "hierarchical")
    contrastive_weight: float = limited(0.0025, 0)
    temperature: float = limited(0.07, 1e-6)
    gather_negatives: bool = False  # the release uses the negatives of one GPU
    video_mask: str = choice("tube", "tube", "random")
    video_mask_ratio: float = limited(0.9, 0, 1)
    audio_mask: str = choice("random", "random", "time", "frequency")
    audio_mask_ratio: float = limited(0.8, 0, 1)
    frame_difference_group: int = limited(2, 0)  # frames per group; 0 reconstructs pixels

    def rules(self) -> None:
        if list(self.levels) != sorted(set(self.levels)) or any(level < 1 for level in self.levels):
            self.refuse("levels", "must be rising encoder layers, counted from 1")
        if self.contrastive == "none" or self.contrastive_weight == 0:
            # No contrast and a weight of zero are the same objective, so they must be the same run.
            for name, value in {"contrastive": "none", "contrastive_weight": 0.0, "gather_negatives": False}.items():
                object.__setattr__(self, name, value)


@dataclass(frozen=True)
class DataConfig(Checked):
    """Which clips; `fingerprint` is the content hash of the corpus as found on the machine that planned the run."""

    corpus: str = "synthetic"
    fold: int | None = limited(None, 1)  # the fold whose test part is held out; None in pre-training
    fingerprint: str = ""
    stride_frames: int = limited(4, 1)  # between the frames of a clip
    sampling: str = choice("shuffled", "shuffled", "stratified")  # stratified: every class alike in every training batch


@dataclass(frozen=True)
class AugmentConfig(Checked):
    """Training-time changes in fine-tuning, as in the release (kinetics_av.py) but for `interpolation`, which there is bicubic:
    that costs 13 times as much here and changes little."""

    rand_augment: str = "rand-m7-n4-mstd0.5-inc1"  # timm's notation; empty switches it off
    interpolation: str = choice("bilinear", "bilinear", "bicubic", "random")  # of RandAugment's turns, shears and shifts
    crop: str = choice("random_resized", "random_resized", "multi_scale")
    crop_scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)  # of the shorter side, in multi_scale
    crop_area: tuple[float, ...] = (0.08, 1.0)  # least and largest share of the frame, in random_resized
    flip: bool = True
    random_gain: bool = True  # scales the sound by 0.5-1.5
    random_erasing: float = limited(0.25, 0, 1)
    mixup: float = limited(0.8, 0)
    cutmix: float = limited(1.0, 0)
    label_smoothing: float = limited(0.1, 0, 0.999)
    repeats: int = limited(1, 1)  # repeated augmentation: views of a clip in one batch

    def rules(self) -> None:
        if len(self.crop_area) != 2 or not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            self.refuse("crop_area", "must be two rising shares above 0 and up to 1")
        if not self.crop_scales or not all(0 < scale <= 1 for scale in self.crop_scales):
            self.refuse("crop_scales", "must be at least one share, each above 0 and up to 1")
        if self.rand_augment and not re.fullmatch(_RAND_AUGMENT, self.rand_augment):
            self.refuse("rand_augment", "must be in timm's notation, as rand-m7-n4-mstd0.5-inc1, or empty to switch it off")


@dataclass(frozen=True)
class OptimConfig(Checked):
    """AdamW with warm-up and cosine decay; learning rates are scaled by batch_size / 256 as in the release."""

    base_lr: float = limited(3e-4, 0)
    base_min_lr: float = limited(1e-5, 0)
    batch_size: int = limited(160, 1)  # over all processes and accumulation steps
    accumulation_steps: int = limited(1, 1)
    epochs: int = limited(100, 1)
    warmup_epochs: int = limited(5, 0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = limited(0.05, 0)
    layer_decay: float = limited(1.0, 1e-3, 1)
    drop_path: float = limited(0.0, 0, 0.99)
    clip_grad_norm: float | None = limited(None, 0)
    ema_decay: float | None = limited(None, 0, 0.999999)

    @property
    def lr(self) -> float:
        return self.base_lr * self.batch_size / 256

    @property
    def min_lr(self) -> float:
        return self.base_min_lr * self.batch_size / 256

    def rules(self) -> None:
        self.divides("batch_size", "accumulation_steps")
        if self.warmup_epochs > self.epochs:
            self.refuse("warmup_epochs", f"must not exceed epochs = {self.epochs}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            self.refuse("betas", "must be two numbers from 0 to below 1")


@dataclass(frozen=True)
class EngineConfig(Checked):
    """How the steps are computed. These fields can change the last bits of a result, so they count."""

    precision: str = choice("fp32", "fp32", "bf16", "fp16")
    zero_stage: int = choice(0, 0, 1, 2, 3)
    activation_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = False


@dataclass(frozen=True)
class HeadConfig(Checked):
    """The task and how features become an answer (hierarchical feature fusion, Sec. 3.5)."""

    task: str = choice("classification", "classification", "regression")
    outputs: int = limited(6, 1)  # classes or regression targets
    modality: str = choice("AV", "AV", "A", "V")
    feature_fusion: str = choice("hierarchical", "hierarchical", "last")
    loss: str = choice("cross_entropy", "cross_entropy", "mse", "ccc")  # ccc: of a micro-batch, over all processes

    def rules(self) -> None:
        if (self.task == "classification") != (self.loss == "cross_entropy"):
            self.refuse("loss", f"{self.task} takes {'cross_entropy' if self.task == 'classification' else 'mse or ccc'}")
        if self.task == "classification" and self.outputs < 2:
            self.refuse("outputs", "a classification needs at least 2 classes")


@dataclass(frozen=True)
class EvaluationConfig(Checked):
    """How the test part is read and which epoch counts (protocols.md: choices of a reproduction)."""

    selection: str = choice("last", "last", "validation", "inner")  # inner: judged on the validation part, test is never read
    validation_fraction: float = limited(0.2, 0.01, 0.9)  # of the training part's actors or sessions
    oracle: bool = False  # report the best epoch on test too, named oracle; evaluates test every epoch
    segments: int = limited(2, 1)
    crops: str = choice("release", "release", "three")  # the release's crops coincide
    random_gain: bool = True  # as in the release, by 0.5-1.5, drawn for (seed, sample, view); False leaves test sound alone

    def rules(self) -> None:
        if self.selection == "inner" and self.oracle:
            self.refuse("oracle", "looks at the test part, which selection = 'inner' never reads")


@dataclass(frozen=True)
class InitialWeights(Checked):
    """Where fine-tuning starts: nowhere, a pre-training run (by run id) or an authors' checkpoint (by SHA-256 of the file)."""

    source: str = choice("scratch", "scratch", "run", "official")
    reference: str = ""
    epoch: int | None = limited(None, 1)  # an intermediate checkpoint that the pre-training kept

    def rules(self) -> None:
        if (self.source == "scratch") != (self.reference == ""):
            self.refuse("reference", "is a run id or a file's SHA-256, and is empty with source = 'scratch'")
        if self.source == "scratch" and self.epoch is not None:
            self.refuse("epoch", "is of weights to start from; leave it out with source = 'scratch'")


@dataclass(frozen=True)
class PretrainConfig(Checked):
    """One self-supervised pre-training."""

    stage: str = choice("pretrain", "pretrain")
    encoder: EncoderConfig = part(EncoderConfig)
    decoder: DecoderConfig = part(DecoderConfig)
    objective: ObjectiveConfig = part(ObjectiveConfig)
    data: DataConfig = part(DataConfig)
    optim: OptimConfig = part(OptimConfig)
    engine: EngineConfig = part(EngineConfig)
    keep_epochs: tuple[int, ...] = ()  # weights kept after these epochs, beside the last
    seed: int = limited(0, 0)

    def rules(self) -> None:
        if self.data.sampling == "stratified":
            self.data.refuse("sampling", "pre-training has no classes; use shuffled")
        if list(self.keep_epochs) != sorted(set(self.keep_epochs) & set(range(1, self.optim.epochs + 1))):
            self.refuse("keep_epochs", f"must be rising epochs from 1 to epochs = {self.optim.epochs}")
        levels, depth = self.objective.levels, self.encoder.depth
        if levels and levels[-1] > depth:
            self.objective.refuse("levels", f"the encoder has {depth} layers")
        if self.decoder.skip_connections and len(levels) != self.decoder.depth - 1:
            self.objective.refuse(
                "levels", f"skip connections need one level per decoder block after the first: {self.decoder.depth - 1}"
            )
        if self.objective.contrastive == "hierarchical" and not levels:
            self.objective.refuse("levels", "hierarchical contrast needs at least one level")
        if self.objective.contrastive != "none" and self.optim.batch_size < 2 * self.optim.accumulation_steps:
            self.optim.refuse("batch_size", "contrast needs at least 2 clips in a step")
        time, side, _ = self.encoder.video_grid
        _leaves_tokens(
            self.objective,
            "video_mask_ratio",
            side * side if self.objective.video_mask == "tube" else time * side * side,
        )
        audio_time, audio_mel = self.encoder.audio_grid
        units = {"random": audio_time * audio_mel, "time": audio_time, "frequency": audio_mel}
        _leaves_tokens(self.objective, "audio_mask_ratio", units[self.objective.audio_mask])
        group = self.objective.frame_difference_group
        if group and self.encoder.tubelet_frames % group:
            self.objective.refuse(
                "frame_difference_group", f"must divide tubelet_frames = {self.encoder.tubelet_frames}, or be 0"
            )


@dataclass(frozen=True)
class FinetuneConfig(Checked):
    """One fine-tuning with its evaluation on the fold's test part."""

    stage: str = choice("finetune", "finetune")
    encoder: EncoderConfig = part(EncoderConfig)
    head: HeadConfig = part(HeadConfig)
    initial: InitialWeights = part(InitialWeights)
    data: DataConfig = part(DataConfig)
    augment: AugmentConfig = part(AugmentConfig)
    optim: OptimConfig = part(OptimConfig)
    engine: EngineConfig = part(EngineConfig)
    evaluation: EvaluationConfig = part(EvaluationConfig)
    seed: int = limited(0, 0)

    def rules(self) -> None:
        if self.head.task == "regression" and (self.augment.mixup or self.augment.cutmix):
            self.augment.refuse("mixup", "mixup and cutmix are for classification; set both to 0")
        if self.head.task == "regression" and self.data.sampling == "stratified":
            self.data.refuse("sampling", "regression has no classes; use shuffled")
        if self.optim.batch_size % self.augment.repeats:
            self.augment.refuse("repeats", f"must divide batch_size = {self.optim.batch_size}")
        if self.mixes() and self.optim.batch_size // self.optim.accumulation_steps % 2:
            self.optim.refuse("batch_size", "mixup and cutmix pair clips: batch_size / accumulation_steps must be even")
        if self.head.loss == "ccc" and self.optim.batch_size < 2 * max(self.optim.accumulation_steps, self.augment.repeats):
            self.optim.refuse("batch_size", "the ccc loss needs at least 2 clips in a step, and in each accumulation step")

    def mixes(self) -> bool:
        """Whether clips are mixed in pairs; without video only labels would be."""
        return bool(self.augment.mixup or self.augment.cutmix) and "V" in self.head.modality


RunConfig = PretrainConfig | FinetuneConfig
STAGES: dict[str, type[PretrainConfig] | type[FinetuneConfig]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
}
C = TypeVar("C", bound=Checked)


def to_dict(config: Checked) -> dict[str, Any]:
    """Nested plain dictionaries, as in config.json."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The inverse of `to_dict`. Raises ConfigError for unknown fields, wrong types and refused values."""
    stage = str(values.get("stage"))
    if stage not in STAGES:
        raise_unknown("stage", stage, STAGES)
    return _built(STAGES[stage], values)


def canonical_json(config: Checked) -> str:
    """One line, keys sorted, no spaces: equal configurations give equal text on every machine."""
    return json.dumps(to_dict(config), sort_keys=True, separators=(",", ":"), allow_nan=False)


def run_id(config: RunConfig) -> str:
    """The first 16 hex digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:RUN_ID_LENGTH]


def change(config: C, delta: Mapping[str, Any]) -> C:
    """A copy with fields changed by dotted name: {"objective.contrastive": "none"}; rules are checked after all changes."""
    tree: dict[str, Any] = {}
    for dotted, value in delta.items():
        branch = tree
        *parents, leaf = dotted.split(".")
        for name in parents:
            branch = branch.setdefault(name, {})
        branch[leaf] = value
    return _changed(config, tree)


def flatten(config: Checked) -> dict[str, Any]:
    """Dotted field names and values, in declaration order."""
    flat: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if isinstance(value, Checked):
            flat.update({f"{item.name}.{name}": inner for name, inner in flatten(value).items()})
        else:
            flat[item.name] = value
    return flat


def differences(old: Checked, new: Checked) -> dict[str, tuple[Any, Any]]:
    """The dotted fields in which two configurations differ, with both values; a missing field is None."""
    before, after = flatten(old), flatten(new)
    names = [*before, *(name for name in after if name not in before)]
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def _changed(config: C, tree: Mapping[str, Any]) -> C:
    values: dict[str, Any] = {}
    for name, value in tree.items():
        if name not in {item.name for item in fields(config)}:
            raise_unknown(f"field of {type(config).__name__}", name, (item.name for item in fields(config)))
        current = getattr(config, name)
        values[name] = _changed(current, value) if isinstance(current, Checked) and isinstance(value, Mapping) else value
    return dataclasses.replace(config, **values)


def _built(kind: type[C], values: Mapping[str, Any]) -> C:
    types = field_types(kind)
    for name in values:
        if name not in types:
            raise_unknown(f"field of {kind.__name__}", name, types)
    built = {name: _built(types[name], value) if isinstance(value, Mapping) else value for name, value in values.items()}
    return kind(**built)


def _leaves_tokens(objective: ObjectiveConfig, name: str, units: int) -> None:
    masked = int(getattr(objective, name) * units)
    if not 0 < masked < units:
        objective.refuse(name, f"must mask at least 1 and leave at least 1 of {units} tokens (masks {masked})")
