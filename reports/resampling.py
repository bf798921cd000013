"""Metrics of thousands of bootstrap resamples at once: a resample of groups needs only each group's sums, not its clips.

For classes the sums are the group's confusion counts, for regression its moments about the overall means.

Legend: G groups, R resamples, S samples, K classes or targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hicmae.metrics import CLASSIFICATION
from reports.predictions import Predictions
from reports.stats import CONFIDENCE, FEWEST_GROUPS, Interval

Floats = NDArray[np.float64]
_MOMENTS = 8  # count, x, y, xx, yy, xy, |x - y|, (x - y)^2


def cluster_interval(
    estimate: float,
    parts: Sequence[tuple[Predictions, float]],
    metric: str,
    generator: np.random.Generator,
    resamples: int = 2000,
    confidence: float = CONFIDENCE,
) -> Interval:
    """As `stats.cluster_bootstrap` of the weighted sum of a metric over parts (predictions of the same samples, with weights)."""
    names, membership = np.unique(parts[0][0].groups, return_inverse=True)
    if len(names) < FEWEST_GROUPS:
        return Interval(estimate, float("nan"), float("nan"))
    draws = generator.integers(len(names), size=(resamples, len(names)))
    counts = np.zeros((resamples, len(names)))
    np.add.at(counts, (np.arange(resamples)[:, None], draws), 1.0)  # (R, G)
    values = sum(weight * resampled(part, metric, membership, counts) for part, weight in parts)
    low, high = np.nanquantile(values, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(estimate, float(low), float(high))


def resampled(predictions: Predictions, metric: str, membership: NDArray[np.int64], counts: Floats) -> Floats:
    """The metric (R,) where group g, of samples with membership g, is taken counts[r, g] times; counts (R, G)."""
    kind, _, target = metric.partition(" ")
    groups = counts.shape[1]
    if kind in CLASSIFICATION:
        classes = int(max(predictions.truth.max(), predictions.answers.max())) + 1
        place = (membership * classes + predictions.truth) * classes + predictions.answers
        sums = np.bincount(place, minlength=groups * classes**2).reshape(groups, classes**2)
        return _OF_COUNTS[kind]((counts @ sums).reshape(-1, classes, classes))
    moments = _moments(predictions.truth, predictions.answers, membership, groups)  # (G, 8 K)
    values = _OF_MOMENTS[kind](*np.moveaxis((counts @ moments).reshape(len(counts), _MOMENTS, -1), 1, 0), _shift(predictions))
    names = list(predictions.targets) or [str(index) for index in range(values.shape[1])]
    return np.asarray(values[:, names.index(target)] if target else values.mean(axis=1))


def _shift(predictions: Predictions) -> Floats:
    """Overall mean of the targets minus that of the outputs (K,): what centring takes out of their distance."""
    return np.asarray(predictions.truth.mean(axis=0) - predictions.answers.mean(axis=0))


def _moments(truth: Floats, answers: Floats, membership: NDArray[np.int64], groups: int) -> Floats:
    x, y, distance = truth - truth.mean(axis=0), answers - answers.mean(axis=0), truth - answers
    each = [np.ones_like(x), x, y, x * x, y * y, x * y, np.abs(distance), distance**2]
    sums = np.zeros((groups, _MOMENTS, x.shape[1]))
    np.add.at(sums, membership, np.stack(each, axis=1))
    return sums.reshape(groups, -1)


def _recalls(confusion: Floats) -> Floats:
    support = confusion.sum(axis=2)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    return np.divide(100 * hits, support, out=np.full(support.shape, np.nan), where=support > 0)


def _accuracy(confusion: Floats) -> Floats:
    return np.asarray(100 * np.trace(confusion, axis1=1, axis2=2) / confusion.sum(axis=(1, 2)))


def _f1(confusion: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    support, either = confusion.sum(axis=2), confusion.sum(axis=1) + confusion.sum(axis=2)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    return np.divide(2 * hits, either, out=np.zeros(either.shape), where=either > 0), support, either > 0


def _weighted_f1(confusion: Floats) -> Floats:
    f1, support, _ = _f1(confusion)
    return np.asarray(100 * (f1 * support).sum(axis=1) / support.sum(axis=1))


def _macro_f1(confusion: Floats) -> Floats:
    f1, _, occurs = _f1(confusion)
    return np.asarray(100 * (f1 * occurs).sum(axis=1) / occurs.sum(axis=1))


def _pcc(n: Floats, x: Floats, y: Floats, xx: Floats, yy: Floats, xy: Floats, *_: Floats) -> Floats:
    spread = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
    return 100 * np.divide(xy - x * y / n, spread, out=np.zeros_like(spread), where=spread > 0)


def _ccc(n: Floats, x: Floats, y: Floats, xx: Floats, yy: Floats, xy: Floats, _: Floats, __: Floats, shift: Floats) -> Floats:
    freedom = np.maximum(n - 1, 1)
    spread = (xx - x * x / n + yy - y * y / n) / freedom + (x / n - y / n + shift) ** 2
    return 100 * np.divide(2 * (xy - x * y / n) / freedom, spread, out=np.zeros_like(spread), where=spread > 0)


def _mae(n: Floats, *others: Floats) -> Floats:
    return others[5] / n


def _rmse(n: Floats, *others: Floats) -> Floats:
    return np.sqrt(others[6] / n)


_OF_COUNTS: dict[str, Callable[[Floats], Floats]] = {
    "UAR": lambda confusion: np.nanmean(_recalls(confusion), axis=1),
    "WAR": _accuracy,
    "micro_F1": _accuracy,
    "WF1": _weighted_f1,
    "macro_F1": _macro_f1,
}
_OF_MOMENTS: dict[str, Callable[..., Any]] = {"PCC": _pcc, "CCC": _ccc, "MAE": _mae, "RMSE": _rmse}
