"""Metrics of recognition and regression, and the merging of views, as in the authors' release. NumPy only, no torch.

    scores = merge_views(view_scores)                     # (V, S, K) -> (S, K)
    compute(("UAR", "WAR"), labels, scores.argmax(1))     # {"UAR": 45.6, "WAR": 45.8}, in percent

Legend: V views of a sample, S samples, K classes or regression targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hicmae.errors import UsageError, raise_unknown

Floats = NDArray[np.float64]


def confusion(labels: ArrayLike, predictions: ArrayLike, classes: int | None = None) -> NDArray[np.int64]:
    """Counts (K, K): rows are labels, columns predictions. K is `classes`, or the largest index met plus 1.

    Raises UsageError when there is no sample, the lengths differ or an index lies outside the classes.
    """
    truth, answer = _integers(labels), _integers(predictions)
    if truth.shape != answer.shape or truth.size == 0:
        raise UsageError(f"metrics need one prediction per label; got {answer.size} predictions for {truth.size} labels")
    top = int(max(truth.max(), answer.max()))
    size = top + 1 if classes is None else classes
    if top >= size or min(truth.min(), answer.min()) < 0:
        raise UsageError(f"a label or prediction lies outside the classes 0..{size - 1}")
    return np.bincount(truth * size + answer, minlength=size * size).reshape(size, size)


def recalls(labels: ArrayLike, predictions: ArrayLike, classes: int | None = None) -> Floats:
    """The recall (K,) of every class in percent; NaN for a class without samples."""
    counts = confusion(labels, predictions, classes)
    support = counts.sum(1)
    return np.divide(100.0 * counts.diagonal(), support, out=np.full(len(counts), np.nan), where=support > 0)


def uar(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Unweighted average recall: the mean recall of the classes that have samples, in percent."""
    found = recalls(labels, predictions)
    known = ~np.isnan(found)  # as np.nanmean, bit for bit, in a tenth of its time: reports compute it for thousands of runs
    return float(np.where(known, found, 0.0).sum() / known.sum())


def war(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Weighted average recall, which is accuracy, in percent; equal to micro F1 for single labels."""
    counts = confusion(labels, predictions)
    return float(100 * counts.trace() / counts.sum())


def weighted_f1(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The classes' F1 weighted by their number of samples, in percent."""
    f1, support, _ = _f1(labels, predictions)
    return float(100 * np.average(f1, weights=support))


def macro_f1(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The mean F1 of the classes that occur among labels or predictions, in percent."""
    f1, _, occurs = _f1(labels, predictions)
    return float(100 * f1[occurs].mean())


def pcc(targets: ArrayLike, outputs: ArrayLike) -> Floats:
    """Pearson's correlation (K,) in percent; 0 where it is undefined (constant outputs or targets, fewer than 2 samples)."""
    truth, answer = _pair(targets, outputs)
    truth, answer = truth - truth.mean(0), answer - answer.mean(0)
    scale = np.sqrt((truth**2).sum(0) * (answer**2).sum(0))
    return 100 * np.divide((truth * answer).sum(0), scale, out=np.zeros(scale.shape), where=scale > 0)


def ccc(targets: ArrayLike, outputs: ArrayLike) -> Floats:
    """Lin's concordance correlation (K,) in percent, with unbiased variances as the release; 0 where it is undefined."""
    truth, answer = _pair(targets, outputs)
    distance = (truth.mean(0) - answer.mean(0)) ** 2
    truth, answer, degrees = truth - truth.mean(0), answer - answer.mean(0), max(len(truth) - 1, 1)
    spread = ((truth**2).sum(0) + (answer**2).sum(0)) / degrees + distance
    return 100 * np.divide(2 * (truth * answer).sum(0) / degrees, spread, out=np.zeros(spread.shape), where=spread > 0)


def mae(targets: ArrayLike, outputs: ArrayLike) -> Floats:
    """Mean absolute error (K,), in the targets' units."""
    truth, answer = _pair(targets, outputs)
    return np.abs(truth - answer).mean(0)


def rmse(targets: ArrayLike, outputs: ArrayLike) -> Floats:
    """Root mean squared error (K,), in the targets' units."""
    truth, answer = _pair(targets, outputs)
    return np.sqrt(((truth - answer) ** 2).mean(0))


CLASSIFICATION: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    "UAR": uar,
    "WAR": war,
    "WF1": weighted_f1,
    "micro_F1": war,
    "macro_F1": macro_f1,
}
REGRESSION: dict[str, Callable[[ArrayLike, ArrayLike], Floats]] = {"PCC": pcc, "CCC": ccc, "MAE": mae, "RMSE": rmse}
METRICS: dict[str, Callable[[ArrayLike, ArrayLike], Any]] = {**CLASSIFICATION, **REGRESSION}
HIGHER_IS_BETTER = {name: name not in ("MAE", "RMSE") for name in METRICS}


def compute(names: Sequence[str], labels: ArrayLike, predictions: ArrayLike, targets: Sequence[str] = ()) -> dict[str, float]:
    """Some metrics by name: labels (S,) with predicted classes (S,), or regression targets (S, K) with outputs (S, K).

    A regression metric `PCC` gives the mean over targets as `PCC` and each target's as `PCC <target>`; the name of one
    target's, `PCC arousal`, gives that alone. Raises UsageError for unknown names (nearest first).
    """
    values: dict[str, float] = {}
    for name in names:
        kind, _, one = name.partition(" ")
        if kind in CLASSIFICATION:
            values[name] = CLASSIFICATION[kind](labels, predictions)
        elif kind in REGRESSION:
            per_target = REGRESSION[kind](labels, predictions)
            words = list(targets) or [str(i) for i in range(len(per_target))]
            each = {f"{kind} {word}": float(value) for word, value in zip(words, per_target, strict=True)}
            if one and name not in each:
                raise_unknown("metric", name, [*METRICS, *each])
            values.update({name: each[name]} if one else {kind: float(per_target.mean()), **each})
        else:
            raise_unknown("metric", name, METRICS)
    return values


def merge_views(scores: ArrayLike, task: str = "classification") -> Floats:
    """Raw scores (V, S, K) of every view -> (S, K): mean class probabilities, or mean outputs of a regression.

    As `merge` of the authors' engine_for_finetuning_av.py: softmax per view, then the mean.
    """
    views = np.asarray(scores, dtype=np.float64)
    if views.ndim != 3:
        raise UsageError(f"views must have the shape (views, samples, classes), not {views.shape}")
    if task == "classification":
        views = np.exp(views - views.max(axis=-1, keepdims=True))
        views /= views.sum(axis=-1, keepdims=True)
    return views.mean(axis=0)


def merge_tasks(scores: ArrayLike, tasks: Sequence[str]) -> tuple[list[str], Floats]:
    """Average merged scores (S, K) over the clips of a task: (task names in order of first appearance, (tasks, K)).

    AVCAffe labels tasks, not clips; the release averages the scores of a task's clips.
    """
    rows = np.asarray(scores, dtype=np.float64)
    names = list(dict.fromkeys(tasks))
    member = np.array(names)[:, None] == np.array(tasks)[None, :]  # (tasks, S)
    return names, member @ rows / member.sum(1, keepdims=True)


def _f1(labels: ArrayLike, predictions: ArrayLike) -> tuple[Floats, NDArray[np.int64], NDArray[np.bool_]]:
    """Per class: F1, number of samples, whether it occurs among labels or predictions."""
    counts = confusion(labels, predictions)
    support, predicted = counts.sum(1), counts.sum(0)
    either = support + predicted
    f1 = np.divide(2.0 * counts.diagonal(), either, out=np.zeros(len(counts)), where=either > 0)
    return f1, support, either > 0


def _integers(values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise UsageError(f"labels and predicted classes must be integers in one dimension, not {array.dtype} {array.shape}")
    return array.astype(np.int64)


def _pair(targets: ArrayLike, outputs: ArrayLike) -> tuple[Floats, Floats]:
    truth, answer = np.asarray(targets, dtype=np.float64), np.asarray(outputs, dtype=np.float64)
    if truth.ndim == 1:
        truth, answer = truth[:, None], answer.reshape(len(answer), -1)
    if truth.shape != answer.shape or truth.size == 0:
        raise UsageError(f"regression metrics need targets and outputs of one shape, not {truth.shape} and {answer.shape}")
    return truth, answer
