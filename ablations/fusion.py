"""How sound and picture meet: the flow of information in the fusion encoder, and its depth (the paper's ablation).

python experiments/launch.py ablation_fusion
"""

from __future__ import annotations

from experiments.experiment import Experiment, Table, Variant

FLOWS = {"parallel": "both at once", "audio_first": "audio first", "video_first": "video first"}


def study() -> Experiment:
    """The default is both at once with two layers. No published value is known here; the table leaves those cells empty."""
    return Experiment(
        name="ablation_fusion",
        title="Cross-modal fusion",
        description="Which stream reads the other's tokens first inside a fusion layer, and how many fusion layers there are.",
        source="paper, fusion",
        corpora=("mafw",),
        variants=(
            *(_variant(words, {"encoder.fusion_flow": flow}, words, 2) for flow, words in FLOWS.items()),
            *(_variant(f"depth {depth}", {"encoder.fusion_depth": depth}, FLOWS["parallel"], depth) for depth in (1, 3)),
        ),
        table=Table(columns=("flow", "layers"), baseline=FLOWS["parallel"]),
    )


def _variant(name: str, delta: dict[str, object], flow: str, layers: int) -> Variant:
    return Variant(name, delta, columns={"flow": flow, "layers": layers})
