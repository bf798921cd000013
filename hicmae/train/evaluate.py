"""Evaluation on a part of a corpus: scores of all views, merged as in the release, the corpus' metrics, the predictions' table.

Legend: V views of a sample, S samples, K classes or regression targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hicmae import metrics
from hicmae.config import FinetuneConfig
from hicmae.data import corpora
from hicmae.data.corpora import Corpus, Sample
from hicmae.model.classify import HiCMAEClassifier
from hicmae.model.losses import finetune_loss
from hicmae.train.distributed import World
from hicmae.train.objective import autocast
from hicmae.whole import written_whole

if TYPE_CHECKING:
    import pyarrow as pa

    from hicmae.data.loader import Batches


@dataclass(frozen=True)
class Evaluation:
    """What a model says about the samples of a part."""

    samples: list[Sample]
    views: NDArray[np.float64]  # (V, S, K) raw scores
    corpus: Corpus
    config: FinetuneConfig

    @property
    def scores(self) -> NDArray[np.float64]:
        """(S, K): mean class probabilities, or mean outputs."""
        return metrics.merge_views(self.views, self.config.head.task)

    def is_finite(self) -> bool:
        """Whether every score is a number, so that metrics exist."""
        return bool(np.isfinite(self.views).all())

    def metrics(self) -> dict[str, float]:
        """The corpus' metrics, the loss of the raw scores, and the recall of every class that has samples."""
        scores, samples = self.scores, self.samples
        if samples[0].task_id is not None:  # AVCAffe labels tasks, not clips
            first = {sample.task_id: sample for sample in reversed(samples)}
            tasks, scores = metrics.merge_tasks(scores, [str(sample.task_id) for sample in samples])
            samples = [first[task] for task in tasks]
        if self.config.head.task == "regression":
            truth = np.array([sample.targets for sample in samples])
            return {"loss": self._loss(), **metrics.compute(self.corpus.metrics, truth, scores, self.corpus.targets)}
        labels, predicted = np.array([sample.label for sample in samples]), scores.argmax(1)
        values = metrics.compute(self.corpus.metrics, labels, predicted)
        recalls = zip(self.corpus.classes, metrics.recalls(labels, predicted, self.config.head.outputs), strict=True)
        return {"loss": self._loss(), **values, **{f"recall {name}": float(r) for name, r in recalls if np.isfinite(r)}}

    def headline(self) -> float:
        """The corpus' first metric, with its sign turned where lower is better."""
        name = self.corpus.metrics[0]
        return self.metrics()[name] * (1 if metrics.HIGHER_IS_BETTER[name.split()[0]] else -1)

    def _loss(self) -> float:
        """The mean over views of the task's loss, without label smoothing."""
        if self.config.head.task == "regression":
            truth = torch.tensor([sample.targets for sample in self.samples], dtype=torch.float64)
        else:
            truth = torch.tensor([sample.label for sample in self.samples])
        losses = [finetune_loss(torch.from_numpy(view), truth, self.config.head) for view in self.views]
        return float(torch.stack(losses).mean())

    def table(self, selection: str) -> pa.Table:
        """Predictions, one row per sample: see `write_predictions`."""
        import pyarrow as pa

        is_regression = self.config.head.task == "regression"
        columns: dict[str, Any] = {
            "sample_id": [sample.sample_id for sample in self.samples],
            "group": [sample.group for sample in self.samples],
            "task_id": pa.array([sample.task_id for sample in self.samples], pa.string()),
        }
        if is_regression:
            truth = np.array([sample.targets for sample in self.samples], dtype=np.float64)
            columns |= {f"target_{k}": truth[:, k] for k in range(truth.shape[1])}
        else:
            columns["label"] = [sample.label for sample in self.samples]
        columns |= {f"view_{v}_{k}": row for v, view in enumerate(self.views) for k, row in enumerate(view.T)}
        columns |= {f"score_{k}": row for k, row in enumerate(self.scores.T)}
        if not is_regression:
            columns["prediction"] = self.scores.argmax(1)
        return pa.table({**columns, "selection": [selection] * len(self.samples)})


def evaluate(
    model: HiCMAEClassifier,
    batches: Batches,
    config: FinetuneConfig,
    world: World,
    between: Callable[[], None] = lambda: None,
) -> Evaluation | None:
    """Run a model over a part; the main process gets the result, the others None. All processes must call.

    `between` is called between batches, and may raise to break off.
    """
    model.eval()
    rows: dict[tuple[str, int], NDArray[np.float32]] = {}
    with torch.inference_mode():
        for batch in batches.epoch(0):
            inputs = {name: batch[name].to(world.device, non_blocking=True) for name in ("video", "audio") if name in batch}
            with autocast(config.engine, world.device):
                scores = model(**inputs)
            rows.update(zip(_keys(batch), scores.float().cpu().numpy(), strict=True))
            between()
    shares = world.gather(rows)
    if not world.is_main:
        return None
    return _assembled({key: row for share in shares for key, row in share.items()}, batches.samples, config)


def write_predictions(path: Path, tables: list[pa.Table]) -> None:
    """Write predictions.parquet whole or not at all.

    A row per test sample and selection: sample_id, group, task_id, label (or target_<k>), view_<v>_<k> (raw scores of view v),
    score_<k> (merged: class probabilities or outputs), prediction (the class), selection (last, oracle or validation).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with written_whole(path) as temporary:
        pq.write_table(pa.concat_tables(tables), temporary)


def _keys(batch: Mapping[str, Any]) -> list[tuple[str, int]]:
    return list(zip(batch["sample_id"], batch["view"].tolist(), strict=True))


def _assembled(rows: dict[tuple[str, int], NDArray[np.float32]], samples: list[Sample], config: FinetuneConfig) -> Evaluation:
    views = sorted({view for _, view in rows})
    scores = np.array([[rows[sample.sample_id, view] for sample in samples] for view in views], dtype=np.float64)  # (V, S, K)
    return Evaluation(samples, scores, corpora.get(config.data.corpus), config)
