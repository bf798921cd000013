"""Metrics against scikit-learn and SciPy, on known cases, and on values that make a naive formula divide by zero."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from hicmae import metrics
from hicmae.errors import UsageError

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60)
floats = st.floats(-5, 5, allow_subnormal=False, width=32)


@given(pairs)
def test_classification_metrics_equal_scikit_learn(rows: list[tuple[int, int]]) -> None:
    labels, predictions = (np.array(column) for column in zip(*rows, strict=True))
    ours = metrics.compute(list(metrics.CLASSIFICATION), labels, predictions)
    present = np.unique(labels)
    assert ours == pytest.approx(
        {
            "UAR": 100 * recall_score(labels, predictions, labels=present, average="macro", zero_division=0),
            "WAR": 100 * accuracy_score(labels, predictions),
            "WF1": 100 * f1_score(labels, predictions, average="weighted", zero_division=0),
            "micro_F1": 100 * f1_score(labels, predictions, average="micro"),
            "macro_F1": 100 * f1_score(labels, predictions, average="macro", zero_division=0),
        }
    )
    assert np.array_equal(metrics.confusion(labels, predictions, 7), confusion_matrix(labels, predictions, labels=range(7)))


def test_uar_counts_every_class_the_same_and_war_every_sample() -> None:
    labels, predictions = np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])
    assert metrics.compute(["UAR", "WAR"], labels, predictions) == {"UAR": 50.0, "WAR": 75.0}
    assert metrics.recalls(labels, predictions, 3).tolist()[:2] == [100.0, 0.0]
    assert np.isnan(metrics.recalls(labels, predictions, 3)[2])


@given(st.lists(st.tuples(floats, floats), min_size=3, max_size=40))
def test_correlation_equals_scipy_and_concordance_never_exceeds_it(rows: list[tuple[float, float]]) -> None:
    targets, outputs = (np.array(column) for column in zip(*rows, strict=True))
    ours, concordance = float(metrics.pcc(targets, outputs)[0]), float(metrics.ccc(targets, outputs)[0])
    if min(targets.std(), outputs.std()) > 1e-3:
        assert ours == pytest.approx(100 * pearsonr(outputs, targets)[0], abs=1e-6)
    assert abs(concordance) <= abs(ours) + 1e-9


def test_regression_metrics_name_every_target_and_the_mean() -> None:
    targets = np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]])
    outputs = np.stack([targets[:, 0], -targets[:, 1]], axis=1)
    values = metrics.compute(["PCC", "RMSE"], targets, outputs, ["arousal", "valence"])
    assert values["PCC arousal"] == pytest.approx(100)
    assert values["PCC valence"] == pytest.approx(-100)
    assert values["PCC"] == pytest.approx(0)
    assert values["RMSE arousal"] == 0
    assert values["RMSE valence"] == pytest.approx(np.sqrt((4 + 36 + 100) / 3))
    assert metrics.compute(["MAE valence"], targets, outputs, ["arousal", "valence"]) == {"MAE valence": pytest.approx(6)}


def test_undefined_correlations_are_zero_not_nan() -> None:
    constant, rising = np.full((5, 1), 0.3), np.arange(5.0)[:, None]
    for targets, outputs in ((constant, rising), (rising, constant), (rising[:1], rising[:1])):
        assert metrics.pcc(targets, outputs).tolist() == [0.0]
        assert metrics.ccc(targets, outputs).tolist() == [0.0]


def test_views_are_merged_by_mean_probability_not_by_mean_score() -> None:
    rng = np.random.default_rng(0)
    views = rng.normal(0, 4, (2, 50, 6))
    merged = metrics.merge_views(views)
    assert merged == pytest.approx(softmax(views, axis=-1).mean(0))
    assert (merged.argmax(1) != views.mean(0).argmax(1)).any()
    assert metrics.merge_views(views, "regression") == pytest.approx(views.mean(0))


def test_very_large_scores_do_not_overflow() -> None:
    assert metrics.merge_views([[[1e4, 0.0]], [[0.0, 1e4]]]).tolist() == [[0.5, 0.5]]


def test_clips_of_one_task_are_averaged() -> None:
    names, scores = metrics.merge_tasks([[1.0, 0.0], [0.0, 1.0], [0.2, 0.8]], ["b", "a", "b"])
    assert names == ["b", "a"]
    assert scores == pytest.approx(np.array([[0.6, 0.4], [0.0, 1.0]]))


def test_an_unknown_metric_names_the_nearest_first() -> None:
    with pytest.raises(UsageError, match=r"unknown metric 'UARR'; valid, nearest first: UAR, WAR"):
        metrics.compute(["UARR"], [0], [0])
    with pytest.raises(UsageError, match=r"'PCC arousa'.*: PCC arousal"):
        metrics.compute(["PCC arousa"], np.zeros((3, 1)), np.ones((3, 1)), ["arousal"])


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([], [], "one prediction per label"),
        ([0, 1], [0], "one prediction per label"),
        ([0, -1], [0, 0], "outside the classes"),
        ([0.0, 1.0], [0, 1], "must be integers"),
    ],
)
def test_labels_and_predictions_that_do_not_pair_are_refused(labels: list, predictions: list, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        metrics.compute(["WAR"], labels, predictions)


def test_shapes_that_do_not_pair_are_refused() -> None:
    with pytest.raises(UsageError, match="one shape"):
        metrics.mae(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(UsageError, match=r"\(views, samples, classes\)"):
        metrics.merge_views(np.zeros((3, 2)))
