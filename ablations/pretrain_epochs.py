"""How long to pre-train: one pre-training, fine-tuned from the weights that it kept on its way (paper's ablation of its length).

python experiments/launch.py ablation_pretrain_epochs
"""

from __future__ import annotations

from experiments import recipes
from experiments.experiment import Experiment, Table, Variant


def study() -> Experiment:
    """After 100 epochs this is the main result. No other published value is known here.

    The learning rate follows the schedule of the whole length, so an early checkpoint is not a shorter pre-training.
    """
    lengths, smoke_lengths = (_lengths(size) for size in ("base", "smoke"))
    return Experiment(
        name="ablation_pretrain_epochs",
        title="Length of pre-training",
        description="Fine-tuning from intermediate weights of one pre-training, whose learning rate is still falling there.",
        source="paper, epochs",
        corpora=("mafw",),
        variants=tuple(_variant(epoch, smoke) for epoch, smoke in zip(lengths, smoke_lengths, strict=True)),
        table=Table(columns=("epochs",), baseline=str(lengths[-1])),
    )


def _lengths(size: str) -> tuple[int, ...]:
    total = recipes.pretrain(size).optim.epochs
    return (*recipes.kept_epochs(total), total)


def _variant(epoch: int, smoke: int) -> Variant:
    """The end of pre-training is `None`, not its epoch's number, so that it is the same run as in other studies."""
    total, smoke_total = _lengths("base")[-1], _lengths("smoke")[-1]
    return Variant(
        str(epoch),
        {"initial.epoch": None if epoch == total else epoch},
        columns={"epochs": epoch},
        smoke={"initial.epoch": None if smoke == smoke_total else smoke},
    )
