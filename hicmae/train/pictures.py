"""The pictures that a run draws of its model at its end, with clips that it has open: for MLflow, in RUN_DIR/pictures.

Pre-training: input, seen part and output of some clips. Fine-tuning: the layer weights of feature fusion, and a map of the
features of test clips (PCA, for its speed).

Legend: S clips, W width of the features.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hicmae.config import FinetuneConfig
from hicmae.data import corpora
from hicmae.data.dataset import Draw
from hicmae.model import pictures
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.pretrain import HiCMAEPretrain
from hicmae.model.zoo import open_model
from hicmae.record import RunRecord

if TYPE_CHECKING:
    from hicmae.data.loader import Batches

FOLDER = "pictures"
RECONSTRUCTED = 2
MAPPED = 96  # evenly spread test clips: a fraction of the evaluation's cost
_AT_ONCE = 8


def draw(record: RunRecord, parts: dict[str, Batches], device: torch.device) -> list[Path]:
    """Write the PNG files of a run whose final weights are there, and return their paths."""
    loaded = open_model(record.path)
    folder = record.path / FOLDER
    if isinstance(loaded.model, HiCMAEPretrain):
        return list(_reconstructions(loaded.model, parts["train"], folder))
    assert isinstance(loaded.config, FinetuneConfig)
    return list(_of_classifier(loaded.model, loaded.config, parts["test"], folder, device))


def _reconstructions(model: HiCMAEPretrain, batches: Batches, folder: Path) -> Iterator[Path]:
    chosen = _spread(len(batches.samples), RECONSTRUCTED)
    batch = batches.clips.batch([Draw(number, 0, 0, position) for position, number in enumerate(chosen)])
    for i, name in enumerate(batch["sample_id"]):
        video, audio, *masks = (batch[key][i] for key in ("video", "audio", "masked_video", "masked_audio"))
        figure = pictures.reconstruction(model, video, audio, masks[0], masks[1], name)
        yield pictures.save(figure, folder / f"reconstruction-{i + 1}.png")


def _of_classifier(
    model: HiCMAEClassifier, config: FinetuneConfig, batches: Batches, folder: Path, device: torch.device
) -> Iterator[Path]:
    if model.layer_weights():
        yield pictures.save(pictures.layer_weights(model), folder / "layer-weights.png")
    chosen = _spread(len(batches.samples), MAPPED)
    if len(chosen) >= pictures.FEWEST:
        features = _features(model.to(device), batches, chosen, device)
        title = f"Features of {len(chosen)} test clips"
        yield pictures.save(
            pictures.feature_map(features, _labels(config, batches, chosen), title=title), folder / "features.png"
        )


@torch.inference_mode()
def _features(model: HiCMAEClassifier, batches: Batches, chosen: list[int], device: torch.device) -> Tensor:
    """The features (S, W) of the first view of clips."""
    found = []
    for start in range(0, len(chosen), _AT_ONCE):
        batch = batches.clips.batch([Draw(number, 0, 0, 0) for number in chosen[start : start + _AT_ONCE]])
        inputs = {name: batch[name].to(device) for name in ("video", "audio") if name in batch}
        found.append(model.features(**inputs).float().cpu())
    return torch.cat(found)


def _labels(config: FinetuneConfig, batches: Batches, chosen: list[int]) -> list[str]:
    """The class of every clip; the corpus where there are no classes."""
    corpus = corpora.get(config.data.corpus)
    labels = [batches.samples[number].label for number in chosen]
    return [corpus.name if label is None or not corpus.classes else corpus.classes[label] for label in labels]


def _spread(count: int, wanted: int) -> list[int]:
    return [int(number) for number in np.linspace(0, count - 1, min(count, wanted)).round()]
