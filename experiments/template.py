"""A study of one's own: copy this file anywhere, change it, and launch the copy.

cp experiments/template.py my_study.py
python experiments/launch.py my_study.py --smoke       # try it on one CPU core first
python experiments/launch.py my_study.py --dry-run     # what the real one would run, and for how long
python experiments/launch.py my_study.py
"""

from __future__ import annotations

from experiments.experiment import Experiment, Table, Variant


def study() -> Experiment:
    """Does label smoothing matter? Three variants that share one pre-training; two seeds each, on every fold of CREMA-D.

    A variant changes fields of hicmae/config.py by dotted name, in whichever stages have them; write `pretrain.optim.epochs` or
    `finetune.optim.epochs` to mean one stage. Folds, classes and the recipe's length come from the corpus.
    """
    return Experiment(
        name="my_study",
        title="Label smoothing in fine-tuning",
        corpora=("crema_d",),
        seeds=(0, 1),
        variants=tuple(
            Variant(f"smoothing {value:g}", {"augment.label_smoothing": value}, columns={"smoothing": value})
            for value in (0.0, 0.1, 0.2)
        ),
        table=Table(columns=("smoothing",), baseline="smoothing 0.1"),
    )
