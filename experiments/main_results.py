"""The paper's main results: nine corpora, three sizes, sound, picture and both (paper Tables 2 to 12).

python experiments/launch.py main_results
python experiments/launch.py main_results --only variant="base AV" corpus=crema_d
"""

from __future__ import annotations

from itertools import product

from ablations.model_scale import SIZES
from experiments.experiment import Experiment, Table, Variant, size_delta

CORPORA = (
    "mafw",
    "dfew",
    "mer_multi",
    "crema_d",
    "msp_improv",
    "ravdess",
    "iemocap",
    "werewolf_xl",
    "avcaffe",
    "avcaffe_valence",
)
MODALITIES = {"A": "audio", "V": "video", "AV": "audio + video"}


def study() -> Experiment:
    """Published for base size and both streams, for example: CREMA-D UAR 84.91, WAR 84.89 (Table 6); MAFW WAR 56.17 (Table 2)."""
    return Experiment(
        name="main_results",
        title="Main results",
        description="Fine-tuning of three sizes on nine corpora, with one stream or both.",
        source="paper Tables 2-12",
        corpora=CORPORA,
        variants=tuple(_variant(size, modality) for size, modality in product(SIZES, MODALITIES)),
        table=Table(columns=("size", "modality"), baseline="base AV"),
    )


def _variant(size: str, modality: str) -> Variant:
    delta = {**size_delta(size), "head.modality": modality}
    smoke = {"encoder.dim": SIZES[size][1], "head.modality": modality}
    return Variant(f"{size} {modality}", delta, columns={"size": size, "modality": MODALITIES[modality]}, smoke=smoke)
