"""Evaluation: what is merged, averaged and counted, on scores whose answer is known by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hicmae.config import AugmentConfig, FinetuneConfig, HeadConfig
from hicmae.data import corpora
from hicmae.data.corpora import Sample
from hicmae.train.evaluate import Evaluation
from hicmae.train.selection import _improves


def sample(name: str, label: int | None = None, targets: tuple[float, ...] | None = None, task: str | None = None) -> Sample:
    return Sample(name, Path(f"{name}.mp4"), Path(f"{name}.mp4"), label, targets, name[:2], (1,), task)


def classification(labels: list[int], views: list[list[list[float]]], corpus: str = "synthetic") -> Evaluation:
    samples = [sample(f"s{i}", label) for i, label in enumerate(labels)]
    config = FinetuneConfig(head=HeadConfig(outputs=4))
    return Evaluation(samples, np.array(views, dtype=np.float64), corpora.get(corpus), config)


def test_views_are_merged_as_probabilities_not_as_scores() -> None:
    """Class 0 has the larger mean score, class 1 the larger mean probability: a view that is sure counts no more than 1."""
    views = [[[50.0, 0, 0, 0]], [[-20.0, 0.0, -9, -9]], [[-20.0, 0.0, -9, -9]]]
    assert np.mean(views, axis=0)[0].argmax() == 0
    found = classification([1], views)
    assert found.scores[0].sum() == pytest.approx(1)
    assert found.metrics()["WAR"] == 100


def test_recalls_and_loss_by_hand() -> None:
    views = [[[5.0, 0, 0, 0], [0, 5.0, 0, 0], [5.0, 0, 0, 0]]]
    values = classification([0, 1, 1], views).metrics()
    assert values["recall calm_negative"] == 100 and values["recall calm_positive"] == 50
    assert "recall excited_negative" not in values  # a class without samples has no recall
    assert values["UAR"] == 75 and values["WAR"] == pytest.approx(200 / 3)
    right, wrong = (-np.log(np.exp(x) / (np.exp(5) + 3)) for x in (5, 0))
    assert values["loss"] == pytest.approx((2 * right + wrong) / 3, rel=1e-6)


def test_clips_of_a_task_are_averaged_before_they_are_judged() -> None:
    """AVCAffe labels tasks: two confident right clips outvote a wrong one, and the task counts once."""
    corpus = corpora.get("avcaffe")
    tasks = ["a_task_1", "a_task_1", "a_task_1", "b_task_1"]
    samples = [sample(f"{task}_clip_{i}", 2 if task[0] == "a" else 0, task=task) for i, task in enumerate(tasks)]
    views = np.zeros((1, 4, 5))
    views[0, 0, 2] = views[0, 1, 2] = 9
    views[0, 2, 1] = views[0, 3, 0] = 9
    found = Evaluation(samples, views, corpus, FinetuneConfig(head=HeadConfig(outputs=5)))
    values = found.metrics()
    assert values[corpus.metrics[0]] == 100
    assert found.table("last")["task_id"].to_pylist() == tasks


def test_regression_averages_outputs_and_names_targets() -> None:
    corpus = corpora.get("werewolf_xl")
    truth = np.array([[1.0, 2, 3], [2, 1, 0], [4, 4, 1]])
    samples = [sample(f"s{i}", targets=tuple(row)) for i, row in enumerate(truth)]
    config = FinetuneConfig(
        head=HeadConfig(task="regression", outputs=3, loss="mse"), augment=AugmentConfig(mixup=0.0, cutmix=0.0)
    )
    found = Evaluation(samples, np.stack([truth + 1, truth - 1]), corpus, config)
    np.testing.assert_allclose(found.scores, truth)
    values = found.metrics()
    assert values["PCC arousal"] == pytest.approx(100) and values["CCC dominance"] == pytest.approx(100)
    assert values["loss"] == pytest.approx(1.0)
    table = found.table("last")
    assert table.column_names[:6] == ["sample_id", "group", "task_id", "target_0", "target_1", "target_2"]
    assert "prediction" not in table.column_names and table["view_1_2"].to_pylist() == [2.0, -1.0, 0.0]


def test_scores_that_are_no_numbers_are_found() -> None:
    assert classification([0], [[[1.0, 0, 0, 0]]]).is_finite()
    assert not classification([0], [[[np.nan, 0, 0, 0]]]).is_finite()


def test_the_earliest_of_equal_epochs_stays_best() -> None:
    better, worse = (
        classification([0, 1], [[[1.0, 0, 0, 0], [0, 1.0, 0, 0]]]),
        classification([0, 1], [[[1.0, 0, 0, 0], [1.0, 0, 0, 0]]]),
    )
    best: dict[str, dict[str, object]] = {}
    assert [_improves(best, "oracle", epoch, found) for epoch, found in enumerate([worse, better, better, worse], start=1)] == [
        True,
        True,
        False,
        False,
    ]
    assert best["oracle"]["epoch"] == 2 and best["oracle"]["value"] == 100
