"""The three sizes of the model: tiny, small and base (paper's ablation of the model's scale).

python experiments/launch.py ablation_model_scale
"""

from __future__ import annotations

from experiments.experiment import Experiment, Table, Variant, size_delta

# Fine-tuning parameters in million (protocols of the paper); the widths that stand for the sizes at smoke size.
SIZES = {"tiny": (20.5, 32), "small": (45.7, 48), "base": (80.8, 64)}


def study() -> Experiment:
    """Published on IEMOCAP (Table 10): UAR 66.85 (tiny), 67.46 (small), 68.21 (base)."""
    return Experiment(
        name="ablation_model_scale",
        title="Scale of the model",
        description="Wider encoders and decoders at the same depth.",
        source="paper Table 10",
        corpora=("iemocap",),
        variants=tuple(_variant(size, millions, width) for size, (millions, width) in SIZES.items()),
        table=Table(columns=("size", "parameters (M)"), baseline="base"),
    )


def _variant(size: str, millions: float, smoke_width: int) -> Variant:
    columns = {"size": size, "parameters (M)": millions}
    return Variant(size, size_delta(size), columns, smoke={"encoder.dim": smoke_width})
