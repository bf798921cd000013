"""The base configurations that studies change: the published recipe of a size, completed by what a corpus says of itself."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from hicmae import presets
from hicmae.config import FinetuneConfig, PretrainConfig, change
from hicmae.errors import UsageError

if TYPE_CHECKING:
    from hicmae.data.corpora.base import Corpus

# The release's scripts: CREMA-D 50, MAFW 100, Werewolf-XL 30 (its preset has them); "50-100" for the others.
FINETUNE_EPOCHS = {"mafw": 100, "mafw_43": 100, "dfew": 100}
KEPT_SHARES = 5  # pre-training keeps its weights after every fifth of its epochs


def corpus(name: str) -> Corpus:
    """The corpus of a name; raises UsageError, nearest first. Imported late: corpora are not needed to list studies."""
    from hicmae.data import corpora

    return corpora.get(name)


def pretrain(size: str, corpus_name: str = "voxceleb2") -> PretrainConfig:
    """Pre-training at a size on a corpus."""
    config = presets.pretrain(size, corpus_name)
    return change(config, {"keep_epochs": kept_epochs(config.optim.epochs)})


def kept_epochs(epochs: int) -> tuple[int, ...]:
    """After which epochs weights are kept beside the last: every fifth of the length.

    All studies keep them, so that `ablation_pretrain_epochs` shares its pre-training with the others.
    """
    return tuple(sorted({epochs * share // KEPT_SHARES for share in range(1, KEPT_SHARES)} - {0}))


@cache
def finetune(size: str, corpus_name: str) -> FinetuneConfig:
    """Fine-tuning at a size on a corpus: task, outputs, stride and length as published.

    Except at smoke size the best epoch on test is recorded too, apart and named oracle: it is what the paper reports.
    """
    known = corpus(corpus_name)
    if known.task == "pretraining":
        raise UsageError(f"{corpus_name} has no labels: it serves pre-training only; fine-tune on another corpus")
    if known.task == "regression":
        config = presets.finetune_regression(size, corpus_name, known.outputs())
    else:
        config = presets.finetune(size, corpus_name, known.outputs(), FINETUNE_EPOCHS.get(corpus_name, 50))
    if size == "smoke":
        return config
    return change(config, {"data.stride_frames": known.stride_frames, "evaluation.oracle": True})
