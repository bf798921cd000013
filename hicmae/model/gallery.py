"""All pictures that can be drawn of a model with some clips, written to a folder: what `hicmae pictures` does.

Pre-trained models get reconstructions, fine-tuned ones layer weights, both attention and a map of features where they can.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hicmae.config import FinetuneConfig
from hicmae.model import pictures
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.inference import ClipReader, viewing
from hicmae.model.masking import audio_mask, video_mask
from hicmae.model.pretrain import HiCMAEPretrain
from hicmae.model.zoo import Loaded, as_classifier
from hicmae.seeding import numpy_generator


def draw(loaded: Loaded, files: Sequence[Path], folder: Path, method: str = "pca", seed: int = 0) -> list[Path]:
    """Write PNG files and return their paths. Raises ClipError, naming the file, for a clip that cannot be used."""
    return list(_draw(loaded, files, folder, method, seed))


def _draw(loaded: Loaded, files: Sequence[Path], folder: Path, method: str, seed: int) -> Iterator[Path]:
    classifier = as_classifier(loaded)
    config = viewing(loaded, classifier)
    features = []
    for file, name, views in zip(files, _names(files), ClipReader(config, files), strict=True):
        first = {name: value[0] for name, value in views.items()}
        if isinstance(loaded.model, HiCMAEPretrain):
            figure = _reconstruction(loaded.model, first, file, seed)
            yield pictures.save(figure, folder / f"reconstruction-{name}.png")
        if config.head.modality == "AV" and config.encoder.fusion_depth:
            figure = pictures.attention(classifier, first["video"], first["audio"], f"{file.name}: attention between the streams")
            yield pictures.save(figure, folder / f"attention-{name}.png")
        features.append(_features(classifier, views))
    yield from _of_all(classifier, config, loaded, files, features, folder, method, seed)


def _names(files: Sequence[Path]) -> list[str]:
    """One name for each file: its own, with its folder where two are alike, with a number where that is not enough."""
    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        names = [f"{file.parent.name}-{file.stem}" for file in files]
    taken: set[str] = set()
    for i, name in enumerate(names):
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        names[i] = name if name not in taken else next(other for other in numbered if other not in {*taken, *names})
        taken.add(names[i])
    return names


def _of_all(
    classifier: HiCMAEClassifier,
    config: FinetuneConfig,
    loaded: Loaded,
    files: Sequence[Path],
    features: list[Tensor],
    folder: Path,
    method: str,
    seed: int,
) -> Iterator[Path]:
    if isinstance(loaded.model, HiCMAEClassifier) and config.head.feature_fusion == "hierarchical":
        yield pictures.save(pictures.layer_weights(classifier), folder / "layer-weights.png")
    if len(features) >= pictures.FEWEST:
        labels = [file.parent.name or "." for file in files]
        figure = pictures.feature_map(torch.stack(features).numpy(), labels, method, seed)
        yield pictures.save(figure, folder / f"features-{method}.png")


def _reconstruction(model: HiCMAEPretrain, clip: dict[str, Tensor], file: Path, seed: int) -> pictures.Figure:
    random = numpy_generator("picture masks", seed, file.name)
    hidden_video = torch.from_numpy(video_mask(model.encoder_config, model.objective, random))
    hidden_audio = torch.from_numpy(audio_mask(model.encoder_config, model.objective, random))
    return pictures.reconstruction(model, clip["video"], clip["audio"], hidden_video, hidden_audio, file.name)


@torch.inference_mode()
def _features(model: HiCMAEClassifier, views: dict[str, Tensor]) -> Tensor:
    return model.features(**views).mean(0)
