"""The sizes registered with timm: import this module, then `timm.create_model("hicmae_base", num_classes=8)`.

The models take `model(video, audio)`, which timm's own training scripts do not; `checkpoint_path=` loads weights as usual.
Importing timm takes seconds, so nothing else of the library imports this module.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model

from hicmae import presets
from hicmae.config import HeadConfig
from hicmae.errors import UsageError
from hicmae.model.classify import HiCMAEClassifier

__all__ = ["hicmae_base", "hicmae_small", "hicmae_tiny"]


def _create(size: str, pretrained: bool, num_classes: int = 6, **options: Any) -> HiCMAEClassifier:
    if pretrained:
        raise UsageError("no weights of HiCMAE are hosted for timm; load the authors' file with hicmae.load(FILE)")
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):  # timm's, about hosted weights
        options.pop(name, None)
    return HiCMAEClassifier(presets.ENCODERS[size], HeadConfig(outputs=num_classes, **options))


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
