"""The weight of the contrastive loss beside the reconstruction loss (paper Table 14).

python experiments/launch.py ablation_loss_weight
"""

from __future__ import annotations

from experiments.experiment import Experiment, Table, Variant

WEIGHTS = (0.0, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1)
PUBLISHED = (0.0, 0.0025, 0.1)  # the weights whose values are known here


def study() -> Experiment:
    """Published on MAFW, base size (Table 14): WAR 55.62 at weight 0, 56.17 at 0.0025, 47.87 at 0.1.

    A weight of 0 is the run without contrast of `ablation_hierarchical`.
    """
    return Experiment(
        name="ablation_loss_weight",
        title="Weight of the contrastive loss",
        description="From no contrast at all to a weight at which contrast overrules reconstruction.",
        source="paper Table 14",
        corpora=("mafw",),
        variants=tuple(_variant(weight) for weight in WEIGHTS),
        table=Table(columns=("loss weight",), baseline="0.0025"),
    )


def _variant(weight: float) -> Variant:
    paper = f"loss weight {weight:g}" if weight in PUBLISHED else ""
    return Variant(f"{weight:g}", {"objective.contrastive_weight": weight}, columns={"loss weight": weight}, paper=paper)
