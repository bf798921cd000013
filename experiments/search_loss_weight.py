"""Search of the contrastive loss' weight by what fine-tuning on MAFW makes of it (paper Table 14 has a grid of it).

python experiments/launch.py search_loss_weight [--smoke]
"""

from __future__ import annotations

from experiments.search import Budget, Choice, Float, Search


def search() -> Search:
    """Published: best at 0.0025, worse than none at all at 0.1 (Table 14). A trial is a pre-training and a fine-tuning."""
    contrast = {"objective.contrastive": ("last", "hierarchical")}
    return Search(
        name="search_loss_weight",
        title="Weight of the contrastive loss",
        description="Which layers are contrasted, with what weight and temperature.",
        corpus="mafw",
        folds=(1,),
        space={
            "objective.contrastive": Choice(("none", "last", "hierarchical")),
            "objective.contrastive_weight": Float(5e-4, 1e-1, log=True, when=contrast),
            "objective.temperature": Float(0.03, 0.3, log=True, when=contrast),
        },
        budget=Budget(trials=15),
        smoke={"budget": Budget(trials=8)},
    )
