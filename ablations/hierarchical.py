"""The three hierarchical modules, each on or off: skip connections, cross-modal contrast, feature fusion (paper Table 13).

    python experiments/launch.py ablation_hierarchical            # base size, MAFW, five folds
    python experiments/launch.py ablation_hierarchical --smoke    # one CPU core, the generated corpus
    python experiments/launch.py ablation_hierarchical --corpus crema_d --corpus ravdess

Fusion changes fine-tuning only, so the eight variants share four pre-trainings.
"""

from __future__ import annotations

from itertools import product

from experiments.experiment import Experiment, Table, Variant

PAPER = {"none": "none of the three modules", "skips + contrast + fusion": "all three modules"}


def study() -> Experiment:
    """Published on MAFW, base size (Table 13): WAR 54.79 with none of the modules, 56.17 with all three."""
    return Experiment(
        name="ablation_hierarchical",
        title="The three hierarchical modules",
        description="Hierarchical skip connections, cross-modal contrast and feature fusion, each on and off: 2 x 2 x 2.",
        source="paper Table 13",
        corpora=("mafw",),
        variants=tuple(_variant(*switches) for switches in product((False, True), repeat=3)),
        table=Table(columns=("skips", "contrast", "fusion"), baseline="none"),
    )


def _variant(skips: bool, contrast: bool, fusion: bool) -> Variant:
    switches = {"skips": skips, "contrast": contrast, "fusion": fusion}
    name = " + ".join(module for module, on in switches.items() if on) or "none"
    delta = {
        "decoder.skip_connections": skips,
        "objective.contrastive": "hierarchical" if contrast else "none",
        "head.feature_fusion": "hierarchical" if fusion else "last",
    }
    return Variant(name, delta, columns=switches, paper=PAPER.get(name, ""))
