"""Search of the pre-training recipe by what fine-tuning on MAFW makes of it: losses of different masks cannot be compared.

python experiments/launch.py search_pretrain [--smoke]
"""

from __future__ import annotations

from experiments.search import Budget, Choice, Float, Search


def search() -> Search:
    """Around the published recipe (Sec. 4.1.2), which is trial 0: masks 0.9 and 0.8, base lr 3e-4, frame differences in pairs."""
    return Search(
        name="search_pretrain",
        title="Pre-training recipe",
        description="Masks, targets and learning rate of pre-training.",
        corpus="mafw",
        folds=(1,),
        space={
            "objective.video_mask": Choice(("tube", "random")),
            "objective.video_mask_ratio": Float(0.75, 0.95),
            "objective.audio_mask_ratio": Float(0.6, 0.9),
            "objective.frame_difference_group": Choice((0, 2)),
            "pretrain.optim.base_lr": Float(1e-4, 1e-3, log=True),
        },
        budget=Budget(trials=20),
        smoke={
            "space": {
                "objective.video_mask": Choice(("tube", "random")),
                "objective.video_mask_ratio": Float(0.5, 0.9),
                "objective.audio_mask_ratio": Float(0.5, 0.9),
                "pretrain.optim.base_lr": Float(2e-3, 4e-2, log=True),
            },
            "budget": Budget(trials=8),
        },
    )
