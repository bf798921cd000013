"""Answers and features for media files: `hicmae predict CLIP...` and `hicmae embed CLIP...`.

A clip is seen as in the run's own evaluation (stride, views, crops), but never with a random gain of its sound, and its views
are merged as the release merges them.

Legend: V views, S clips, K classes or targets, W width of the features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hicmae import presets
from hicmae.config import DataConfig, FinetuneConfig, PretrainConfig
from hicmae.data import corpora
from hicmae.data.clipstore import DirectClips
from hicmae.data.corpora import Corpus, Sample
from hicmae.data.dataset import Draw, FinetuneClips
from hicmae.errors import UsageError
from hicmae.metrics import Floats, merge_views
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.zoo import Loaded, as_classifier

_ANY_CORPUS = "synthetic"  # frames at a stride of 4 and no crop: what most corpora are seen with


class ClipReader:
    """The views of media files as the inputs of a model. Raises ClipError, naming the file, when one cannot be used."""

    def __init__(self, config: FinetuneConfig, files: Sequence[Path]) -> None:
        corpus = known_corpus(config.data.corpus) or corpora.get(_ANY_CORPUS)
        samples = [Sample(str(i), path, path, 0, (0.0,) * config.head.outputs, "") for i, path in enumerate(files)]
        source = DirectClips(samples, corpus, config.encoder.image_px)
        self._clips = FinetuneClips(config, samples, source, range(len(samples)), views=True)
        self._clips.fps = corpus.fps or self._clips.fps
        self._views = config.evaluation.segments * (3 if config.evaluation.crops == "three" else 1)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """For every file, video (V, 3, T, H, W) and audio (V, 1, T, F), those that the model takes."""
        for number in range(len(self._clips.samples)):
            batch = self._clips.batch([Draw(number, 0, 0, 0, view) for view in range(self._views)])
            yield {name: batch[name] for name in ("video", "audio") if name in batch}


def predict(loaded: Loaded, files: Sequence[Path], device: torch.device | None = None) -> Floats:
    """Class probabilities or regression outputs (S, K) of files.

    Raises UsageError for a model without a head and ClipError, naming the file, for one that cannot be used.
    """
    model, config = with_head(loaded)
    raw = _over_clips(model, viewing(loaded, model), files, model.forward, device)
    return np.concatenate([merge_views(views[:, None], config.head.task) for views in raw])


def embed(loaded: Loaded, files: Sequence[Path], modality: str | None = None, device: torch.device | None = None) -> Floats:
    """Features (S, W) before the head, averaged over the views.

    `modality` is for pre-trained models, which have no head: AV unless it is given. Raises UsageError where a fine-tuned
    model has another one, and ClipError, naming the file, for one that cannot be used.
    """
    model = as_classifier(loaded, modality)
    config = viewing(loaded, model)
    return np.stack([views.mean(0) for views in _over_clips(model, config, files, model.features, device)])


def viewing(loaded: Loaded, model: HiCMAEClassifier) -> FinetuneConfig:
    """The configuration with which files are seen: the model's own, or one made from its pre-training; no random gain."""
    config = loaded.config
    if isinstance(config, PretrainConfig):
        data = DataConfig(config.data.corpus, stride_frames=config.data.stride_frames)
        config = dataclasses.replace(presets.finetune(), encoder=config.encoder, head=model.head_config, data=data)
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, random_gain=False))


def with_head(loaded: Loaded) -> tuple[HiCMAEClassifier, FinetuneConfig]:
    """The fine-tuned model. Raises UsageError for a pre-trained one, which has no head."""
    if not isinstance(loaded.model, HiCMAEClassifier) or not isinstance(loaded.config, FinetuneConfig):
        raise UsageError(f"{loaded.source}: is a pre-trained model without a head; predict with a fine-tuned one")
    return loaded.model, loaded.config


def class_names(config: FinetuneConfig, corpus: str | None = None, written: Sequence[str] = ()) -> list[str]:
    """The names of a model's outputs: of the corpus that is named, else those `written` beside it, its corpus', or numbers.

    Raises UsageError when the corpus has another number of classes or targets than the model has outputs.
    """
    outputs = config.head.outputs
    if not corpus and len(written) == outputs:
        return list(written)
    known = corpora.get(corpus) if corpus else known_corpus(config.data.corpus)
    if known is None:
        return [str(i) for i in range(outputs)]
    if known.outputs() != outputs:
        raise UsageError(f"{known.name} has {known.outputs()} classes or targets, the model has {outputs} outputs")
    return list(known.classes or known.targets)


def known_corpus(name: str) -> Corpus | None:
    """The corpus that a model was trained on, if its protocol is known, or its list is still where it was."""
    kind, _, place = name.partition(":")
    is_there = name in corpora.names() or (kind in corpora.OWN_DATA and Path(place).exists())
    return corpora.get(name) if is_there else None


def _over_clips(
    model: HiCMAEClassifier,
    config: FinetuneConfig,
    files: Sequence[Path],
    answer: Callable[..., Tensor],
    device: torch.device | None,
) -> list[Floats]:
    """`answer` for the views of every file: S arrays (V, K or W)."""
    device = device or torch.device("cpu")
    model.to(device).eval()
    with torch.inference_mode():
        return [
            answer(**{name: value.to(device) for name, value in inputs.items()}).double().cpu().numpy()
            for inputs in ClipReader(config, files)
        ]
