"""The sizes registered with timm: import this module, then `timm.create_model("hicmae_base", num_classes=8)`.

The models take `model(video, audio)`, which timm's own training scripts do not; `checkpoint_path=` loads weights as usual, and
with `num_classes=0` they give their features. Importing timm takes seconds, so nothing else of the library imports this module.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from timm.models import register_model
from torch import nn

from hicmae import presets
from hicmae.config import EncoderConfig, HeadConfig
from hicmae.errors import UsageError, raise_unknown
from hicmae.model.classify import HiCMAEClassifier

_OPTIONS = tuple(item.name for item in fields(HeadConfig) if item.name != "outputs")
__all__ = ["hicmae_base", "hicmae_small", "hicmae_tiny"]


class TimmHiCMAE(HiCMAEClassifier):
    """The fine-tuning model with the attributes that timm's models have."""

    def __init__(self, encoder: EncoderConfig, head: HeadConfig, num_classes: int) -> None:
        super().__init__(encoder, head)
        self.num_classes, self.num_features = num_classes, self.head.in_features
        if num_classes == 0:
            self.head = nn.Identity()  # type: ignore[assignment]


def _create(size: str, pretrained: bool, num_classes: int = 6, **options: Any) -> HiCMAEClassifier:
    if pretrained:
        raise UsageError("no weights of HiCMAE are hosted for timm; load the authors' file with hicmae.load(FILE)")
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):  # timm's, about hosted weights
        options.pop(name, None)
    for name in options:
        if name not in _OPTIONS:
            raise_unknown(f"option of hicmae_{size}", name, ("num_classes", *_OPTIONS))
    head = HeadConfig(outputs=num_classes or HeadConfig.outputs, **options)
    return TimmHiCMAE(presets.ENCODERS[size], head, num_classes)


@register_model
def hicmae_tiny(pretrained: bool = False, **options: Any) -> HiCMAEClassifier:
    """HiCMAE-T, 20.5 million parameters; options are `num_classes` and the other fields of HeadConfig."""
    return _create("tiny", pretrained, **options)


@register_model
def hicmae_small(pretrained: bool = False, **options: Any) -> HiCMAEClassifier:
    """HiCMAE-S, 45.7 million parameters; options as for `hicmae_tiny`."""
    return _create("small", pretrained, **options)


@register_model
def hicmae_base(pretrained: bool = False, **options: Any) -> HiCMAEClassifier:
    """HiCMAE-B, 80.8 million parameters; options as for `hicmae_tiny`."""
    return _create("base", pretrained, **options)
