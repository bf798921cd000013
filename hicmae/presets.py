"""The published recipes: one short function each, returning a resolved configuration.

Sizes: hicmae-T, -S and -B of the paper, and `smoke`, the size for one CPU core and the generated corpus.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hicmae.config import (
    AugmentConfig,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    FinetuneConfig,
    HeadConfig,
    ObjectiveConfig,
    OptimConfig,
    PretrainConfig,
)
from hicmae.errors import raise_unknown

# As in the paper the sound is that of the frames: 4 at a stride of 8, 25 a second, are 1.28 s.
_SMOKE_INPUT: dict[str, Any] = {"image_px": 48, "frames": 4, "audio_frames": 128, "mel_bins": 32}
_SMOKE_STRIDE_FRAMES = 8
ENCODERS: dict[str, EncoderConfig] = {
    "tiny": EncoderConfig(dim=256, heads=4, fusion_heads=4),
    "small": EncoderConfig(dim=384, heads=6, fusion_heads=6),
    "base": EncoderConfig(dim=512, heads=8, fusion_heads=8),
    "smoke": EncoderConfig(dim=64, heads=2, depth=4, fusion_depth=1, fusion_heads=2, **_SMOKE_INPUT),
}
DECODERS: dict[str, DecoderConfig] = {
    "tiny": DecoderConfig(dim=128, heads=2),
    "small": DecoderConfig(dim=192, heads=3),
    "base": DecoderConfig(dim=384, heads=6),
    "smoke": DecoderConfig(dim=48, heads=2, depth=3),
}


def check_size(size: str) -> str:
    """Raise UsageError, naming the sizes, unless `size` is one."""
    return size if size in ENCODERS else raise_unknown("size", size, ENCODERS)


def pretrain(size: str = "base", corpus: str = "voxceleb2") -> PretrainConfig:
    """Pre-training on VoxCeleb2 (paper Sec. 4.1.2): 100 epochs, batch 160, masks 0.9 and 0.8, loss weight 0.0025.

    `python experiments/launch.py ablation_model_scale` runs all sizes. Expected: no metric of its own.
    """
    if check_size(size) == "smoke":
        return _smoke_pretrain(corpus)
    return PretrainConfig(encoder=ENCODERS[size], decoder=DECODERS[size], data=DataConfig(corpus=corpus))


def finetune(size: str = "base", corpus: str = "crema_d", outputs: int = 6, epochs: int = 50) -> FinetuneConfig:
    """Classification (paper Sec. 4.1.3): batch 56, layer decay 0.75, drop path 0.1, mixup and cutmix.

    Expected with pre-trained weights, base, CREMA-D: UAR 84.91, WAR 84.89 (Table 6; folds spread by 1.9 WAR).
    """
    if check_size(size) == "smoke":
        return _smoke_finetune(corpus, outputs)
    return FinetuneConfig(
        encoder=ENCODERS[size],
        head=HeadConfig(outputs=outputs),
        data=DataConfig(corpus=corpus, fold=1),
        optim=_finetune_optim(batch_size=56, epochs=epochs),
    )


def finetune_regression(size: str = "base", corpus: str = "werewolf_xl", outputs: int = 3) -> FinetuneConfig:
    """Regression (Werewolf-XL, Table 11): batch 128, 30 epochs, mean squared error, frames at a stride of 3, no mixing.

    Expected, base: PCC 33.74 (arousal), 69.23 (valence), 40.66 (dominance).
    """
    config = finetune(size, corpus)
    return FinetuneConfig(
        encoder=config.encoder,
        head=HeadConfig(task="regression", outputs=outputs, loss="mse"),
        data=config.data if size == "smoke" else replace(config.data, stride_frames=3 if corpus == "werewolf_xl" else 4),
        augment=AugmentConfig(mixup=0.0, cutmix=0.0, label_smoothing=0.0),
        optim=config.optim if size == "smoke" else _finetune_optim(batch_size=128, epochs=30),
    )


def _finetune_optim(batch_size: int, epochs: int) -> OptimConfig:
    return OptimConfig(
        base_lr=1e-3,
        base_min_lr=1e-6,
        batch_size=batch_size,
        epochs=epochs,
        betas=(0.9, 0.999),
        layer_decay=0.75,
        drop_path=0.1,
    )


def _smoke_pretrain(corpus: str) -> PretrainConfig:
    return PretrainConfig(
        encoder=ENCODERS["smoke"],
        decoder=DECODERS["smoke"],
        objective=ObjectiveConfig(levels=(2, 4), video_mask_ratio=0.75, audio_mask_ratio=0.7),
        data=DataConfig(corpus=corpus, stride_frames=_SMOKE_STRIDE_FRAMES),
        optim=OptimConfig(base_lr=1.6e-2, batch_size=16, epochs=6, warmup_epochs=1),
    )


def _smoke_finetune(corpus: str, outputs: int) -> FinetuneConfig:
    return FinetuneConfig(
        encoder=ENCODERS["smoke"],
        head=HeadConfig(outputs=outputs),
        data=DataConfig(corpus=corpus, fold=1, stride_frames=_SMOKE_STRIDE_FRAMES),
        augment=AugmentConfig(
            rand_augment="",
            crop="multi_scale",
            crop_scales=(1.0,),
            flip=False,
            random_erasing=0.0,
            mixup=0.0,
            cutmix=0.0,
            label_smoothing=0.0,
        ),
        optim=OptimConfig(
            base_lr=1.6e-2,
            base_min_lr=1e-5,
            batch_size=16,
            epochs=8,
            warmup_epochs=1,
            betas=(0.9, 0.999),
        ),
    )
