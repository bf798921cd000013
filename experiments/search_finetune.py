"""Search of the fine-tuning recipe on CREMA-D: all trials share one pre-training; every outer fold has a search of its own.

python experiments/launch.py search_finetune [--smoke]
python experiments/launch.py search_finetune --use-best       # the chosen configurations on the outer folds
"""

from __future__ import annotations

from experiments.search import Budget, Choice, Float, Search


def search() -> Search:
    """Around the published recipe (Sec. 4.1.3), which is trial 0: base lr 1e-3, layer decay 0.75, drop path 0.1."""
    return Search(
        name="search_finetune",
        title="Fine-tuning recipe",
        description="Learning rate, its decay over layers, and regularisation of fine-tuning.",
        corpus="crema_d",
        space={
            "finetune.optim.base_lr": Float(2e-4, 5e-3, log=True),
            "finetune.optim.layer_decay": Float(0.6, 0.95),
            "finetune.optim.weight_decay": Float(0.01, 0.3, log=True),
            "finetune.optim.drop_path": Float(0.0, 0.3),
            "augment.label_smoothing": Float(0.0, 0.3),
            "augment.mixup": Choice((0.0, 0.2, 0.8)),
            "augment.random_erasing": Float(0.0, 0.5),
        },
        budget=Budget(trials=50),
        splits=3,
        smoke={
            "space": {
                "finetune.optim.base_lr": Float(2e-3, 6e-2, log=True),
                "finetune.optim.layer_decay": Float(0.7, 1.0),
                "finetune.optim.drop_path": Float(0.0, 0.3),
                "augment.label_smoothing": Float(0.0, 0.3),
            },
            "budget": Budget(trials=30),
            "splits": 2,
        },
    )
