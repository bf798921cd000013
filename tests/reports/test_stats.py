"""The statistics against hand computations, scipy, and simulated data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from reports import stats
from reports.predictions import Predictions
from reports.resampling import cluster_interval, resampled

# The worked example: WAR per fold on MAFW, the official rerun against another method.
OURS = np.array([47.60, 55.10, 60.10, 63.09, 55.22])
THEIRS = np.array([46.71, 54.82, 58.87, 59.50, 55.27])
numbers = st.lists(st.floats(-50, 50, allow_nan=False), min_size=2, max_size=8)


def test_worked_example_of_mafw() -> None:
    naive = stats.corrected_t(OURS - THEIRS, 0)
    corrected = stats.corrected_t(OURS - THEIRS, 1 / 4)
    assert naive.mean == pytest.approx(1.19, abs=0.005)
    assert naive.p == pytest.approx(0.137, abs=0.0005)
    assert corrected.p == pytest.approx(0.284, abs=0.0005)
    assert (corrected.low, corrected.high) == pytest.approx((-1.48, 3.86), abs=0.005)
    assert stats.wilcoxon(OURS - THEIRS) == pytest.approx(0.125)
    assert not corrected.resolved


@given(numbers)
def test_without_correction_it_is_the_paired_t_test(differences: list[float]) -> None:
    ours = stats.corrected_t(differences, 0)
    if math.isnan(ours.low):
        assert np.std(differences) <= 1e-11 * max(map(abs, differences))
        return
    theirs = reference.ttest_1samp(differences, 0)
    interval = theirs.confidence_interval(0.95)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-9)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)


@given(numbers, st.floats(0.01, 2))
def test_correction_only_ever_widens(differences: list[float], ratio: float) -> None:
    naive, corrected = stats.corrected_t(differences, 0), stats.corrected_t(differences, ratio)
    if not math.isnan(naive.low):
        assert corrected.low <= naive.low and corrected.high >= naive.high and corrected.p >= naive.p


@pytest.mark.parametrize("differences", [[], [3.0], [2.0, 2.0, 2.0], [0.1 + 0.2, 0.3]])
def test_one_fold_or_no_spread_shows_nothing(differences: list[float]) -> None:
    result = stats.corrected_t(differences, 0.25)
    assert math.isnan(result.p) and not result.resolved
    assert math.isnan(stats.rope(differences, 0.25).inside)


def test_two_identical_methods_do_not_differ() -> None:
    assert stats.corrected_t([0.0, 0.0, 0.0], 0.25).p == 1.0


def test_corrected_t_keeps_its_false_positive_rate_where_the_naive_one_does_not() -> None:
    """No true difference; folds of a 5-fold cross-validation correlate by n_test / (n_test + n_train) = 1/5 (their model)."""
    generator, trials = np.random.default_rng(2003), 4000
    shared, own = generator.normal(size=(trials, 1)), generator.normal(size=(trials, 5))
    differences = math.sqrt(1 / 5) * shared + math.sqrt(4 / 5) * own
    naive = np.mean([stats.corrected_t(row, 0).resolved for row in differences])
    corrected = np.mean([stats.corrected_t(row, 1 / 4).resolved for row in differences])
    assert naive == pytest.approx(0.14, abs=0.02)
    assert corrected == pytest.approx(0.05, abs=0.01)


def test_rope_is_the_t_distribution_cut_in_three() -> None:
    parts = stats.rope(OURS - THEIRS, 1 / 4)
    standard_error = math.sqrt((1 / 5 + 1 / 4) * np.var(OURS - THEIRS, ddof=1))
    inside = reference.t(4, loc=1.188, scale=standard_error)
    assert parts.inside == pytest.approx(inside.cdf(1) - inside.cdf(-1))
    assert parts.below + parts.inside + parts.above == pytest.approx(1)


def test_rope_is_sure_of_equivalence_when_differences_are_tiny() -> None:
    assert stats.rope([0.01, -0.02, 0.0, 0.02, -0.01], 1 / 4).inside > 0.999


def test_bootstrap_resamples_groups_not_samples() -> None:
    """Ten actors whose clips are copies: the interval is that of ten values, and copies do not narrow it."""
    generator = np.random.default_rng(5)
    per_actor = generator.normal(size=10)
    values, groups = np.repeat(per_actor, 100), np.repeat([f"actor {i}" for i in range(10)], 100)
    interval = stats.cluster_bootstrap(lambda index: float(values[index].mean()), groups, np.random.default_rng(1))
    theirs = reference.bootstrap((per_actor,), np.mean, method="percentile", rng=np.random.default_rng(2), n_resamples=4000)
    assert interval.estimate == pytest.approx(per_actor.mean())
    assert interval.low == pytest.approx(theirs.confidence_interval.low, abs=0.05)
    assert interval.high == pytest.approx(theirs.confidence_interval.high, abs=0.05)


def test_bootstrap_covers_the_truth() -> None:
    generator, covered = np.random.default_rng(11), 0
    for _ in range(150):
        actors = generator.normal(size=40)
        values = (actors[:, None] + generator.normal(size=(40, 5))).ravel()
        groups = np.repeat(np.arange(40).astype(str), 5)
        interval = stats.cluster_bootstrap(lambda index, v=values: float(v[index].mean()), groups, generator, resamples=300)
        covered += interval.low <= 0 <= interval.high
    assert 0.87 <= covered / 150 <= 0.99


def test_bootstrap_is_repeatable_and_few_groups_have_no_interval() -> None:
    values = np.arange(12.0)
    groups = np.repeat(list("abcdef"), 2)

    def once() -> stats.Interval:
        return stats.cluster_bootstrap(lambda index: float(values[index].mean()), groups, np.random.default_rng(0), 200)

    assert once() == once()
    for few in (1, 4):
        names = [str(index % few) for index in range(12)]
        alone = stats.cluster_bootstrap(lambda index: 1.0, names, np.random.default_rng(0))
        assert alone.estimate == 1.0 and math.isnan(alone.low)


def test_mcnemar_counts_only_disagreements() -> None:
    first = [True] * 50 + [True] * 9 + [False] * 1 + [False] * 40
    second = [True] * 50 + [False] * 9 + [True] * 1 + [False] * 40
    result = stats.mcnemar(first, second)
    assert (result.only_first, result.only_second) == (9, 1)
    assert result.p == pytest.approx(2 * (1 + 10) / 2**10)  # both tails of Binomial(10, 1/2), by hand
    assert stats.mcnemar(first, first).p == 1.0


def test_holm_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    corrected = stats.holm([0.04, math.nan])
    assert corrected[0] == pytest.approx(0.04) and math.isnan(corrected[1])


@pytest.mark.parametrize(("pairs", "smallest"), [(5, 0.0625), (6, 0.03125)])
def test_smallest_p_of_wilcoxon(pairs: int, smallest: float) -> None:
    assert stats.smallest_wilcoxon_p(pairs) == smallest
    assert stats.wilcoxon(np.arange(1.0, pairs + 1)) == pytest.approx(smallest)


def test_wilcoxon_without_any_difference_is_undefined() -> None:
    assert math.isnan(stats.wilcoxon([0.0, 0.0, 0.0]))
    assert math.isnan(stats.wilcoxon([]))
    assert stats.wilcoxon([3.0]) == 1.0


def test_ranking_over_nine_corpora_against_scipy() -> None:
    generator = np.random.default_rng(3)
    base = generator.uniform(40, 80, size=9)
    scores = {"full": base + 3 + generator.normal(size=9), "part": base + generator.normal(size=9), "none": base - 4}
    ranking = stats.rank_methods(scores)
    assert ranking.friedman_p == pytest.approx(reference.friedmanchisquare(*scores.values()).pvalue)
    assert sum(ranking.mean_ranks.values()) == pytest.approx(6)
    assert min(ranking.mean_ranks, key=ranking.mean_ranks.__getitem__) == "full"
    raw = [reference.wilcoxon(scores[a] - scores[b], method="exact").pvalue for a, b in ranking.pairs]
    assert list(ranking.pairs.values()) == pytest.approx(stats.holm(raw))


def test_seeds_are_averaged_inside_their_fold() -> None:
    values = {(1, 0): 50.0, (1, 1): 54.0, (2, 0): 60.0, (2, 1): 64.0}
    assert stats.average_seeds(values) == {1: 52.0, 2: 62.0}


def test_factorial_effects_recover_an_additive_truth() -> None:
    levels = [(bool(i & 4), bool(i & 2), bool(i & 1)) for i in range(8)]
    base = np.array([40.0, 50.0, 60.0, 45.0, 55.0])
    noise = np.random.default_rng(0).normal(scale=0.01, size=(8, 5))
    truth = [3 * a + 2 * b + 0.0 * c + 4 * (a and b) for a, b, c in levels]
    values = base[None, :] + np.array(truth)[:, None] + noise
    effects = {effect.factors: effect.difference for effect in stats.factorial_effects("abc", levels, values, 1 / 4)}
    assert len(effects) == 7
    assert effects[("a",)].mean == pytest.approx(3 + 4 / 2, abs=0.05)  # on minus off, averaged over b
    assert effects[("b",)].mean == pytest.approx(2 + 4 / 2, abs=0.05)
    assert effects[("a", "b")].mean == pytest.approx(4 / 2, abs=0.05)
    assert effects[("c",)].low < 0.05 and effects[("c",)].high > -0.05
    assert effects[("a",)].resolved


def test_factorial_effects_refuse_a_design_with_a_hole() -> None:
    with pytest.raises(ValueError, match="not a full two-level design"):
        stats.factorial_effects("ab", [(True, True), (True, False), (False, True)], np.zeros((3, 5)), 0.25)


def test_what_the_table_says_when_nothing_can_be_shown() -> None:
    assert stats.not_resolvable(5, 1) == "not resolvable at k=5, 1 seed"
    assert stats.not_resolvable(6, 3) == "not resolvable at k=6, 3 seeds"


@pytest.mark.parametrize("metric", ["UAR", "WAR", "WF1", "micro_F1", "macro_F1"])
def test_resamples_of_groups_at_once_are_those_of_their_samples_classes(metric: str) -> None:
    generator = np.random.default_rng(3)
    truth = generator.integers(5, size=120)
    answers = np.where(generator.random(120) < 0.5, truth, generator.integers(5, size=120))
    _same_as_by_samples(
        Predictions(np.arange(120).astype(str), generator.integers(9, size=120).astype(str), truth, answers), metric
    )


@pytest.mark.parametrize("metric", ["PCC", "CCC", "MAE", "RMSE", "CCC b"])
def test_resamples_of_groups_at_once_are_those_of_their_samples_regression(metric: str) -> None:
    generator = np.random.default_rng(4)
    truth = 50 + generator.normal(size=(120, 2))
    answers = 0.7 * truth + generator.normal(size=(120, 2))
    groups = generator.integers(9, size=120).astype(str)
    _same_as_by_samples(Predictions(np.arange(120).astype(str), groups, truth, answers, ("a", "b")), metric)


def _same_as_by_samples(predictions: Predictions, metric: str) -> None:
    """Against the metric computed on each resample's samples; the interval against the general bootstrap."""
    groups, membership = np.unique(predictions.groups, return_inverse=True)
    draws = np.random.default_rng(5).integers(len(groups), size=(40, len(groups)))
    counts = np.stack([np.bincount(draw, minlength=len(groups)) for draw in draws]).astype(float)

    def value(index: np.ndarray) -> float:
        return predictions.take(index).metrics([metric])[metric]

    slow = [value(np.concatenate([np.flatnonzero(membership == group) for group in draw])) for draw in draws]
    assert resampled(predictions, metric, membership, counts) == pytest.approx(slow)
    quick = cluster_interval(predictions.metrics([metric])[metric], [(predictions, 1.0)], metric, np.random.default_rng(6), 50)
    whole = stats.cluster_bootstrap(value, predictions.groups, np.random.default_rng(6), 50)
    assert (quick.estimate, quick.low, quick.high) == pytest.approx((whole.estimate, whole.low, whole.high))


@given(st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0]), min_size=2, max_size=7))
def test_signed_rank_test_is_exact_with_ties_and_zeros(differences: list[float]) -> None:
    if not any(differences):
        assert math.isnan(stats.wilcoxon(differences))
        return
    nonzero = [value for value in differences if value]
    theirs = reference.wilcoxon(nonzero, method=reference.PermutationMethod(n_resamples=2**8)).pvalue if len(nonzero) > 1 else 1.0
    assert stats.wilcoxon(differences) == pytest.approx(theirs)
