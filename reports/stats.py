"""What a table may claim: intervals and tests for metrics measured on folds, on test samples and over corpora.

All functions are pure; those that draw random numbers take the generator, so the same generator state gives the same numbers.
The unit is the caller's (percentage points in the tables). A question that the data cannot answer has the p value nan.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
ALPHA = 0.05
FEWEST_GROUPS = 5
EXACT_PAIRS = 12  # up to here the signed-rank distribution is enumerated, ties and zeros included


@dataclass(frozen=True)
class Difference:
    """A mean paired difference over `folds` folds with its confidence interval and two-sided p value."""

    mean: float
    low: float
    high: float
    p: float
    folds: int

    @property
    def resolved(self) -> bool:
        """Whether the data show a difference at all; never with fewer than two folds or without spread."""
        return self.p < ALPHA


@dataclass(frozen=True)
class Rope:
    """Posterior probabilities that a difference lies below, inside and above the region of practical equivalence."""

    below: float
    inside: float
    above: float


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Disagreement:
    """Samples that only the first or only the second method classifies correctly, and the exact McNemar p value."""

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True)
class Ranking:
    """Several methods over several corpora: mean ranks (1 is best), Friedman's p, and every pair's Holm-corrected p."""

    mean_ranks: dict[str, float]
    friedman_p: float
    pairs: dict[tuple[str, str], float]
    smallest_p: float


@dataclass(frozen=True)
class Effect:
    """A main effect (one factor) or an interaction (several): on minus off, averaged over the other factors."""

    factors: tuple[str, ...]
    difference: Difference


def average_seeds(values: Mapping[tuple[int, int], float]) -> dict[int, float]:
    """{(fold, seed): value} to {fold: mean over its seeds}: five folds of three seeds are five numbers, not fifteen."""
    folds: dict[int, list[float]] = {}
    for (fold, _), value in sorted(values.items()):
        folds.setdefault(fold, []).append(value)
    return {fold: float(np.mean(seeds)) for fold, seeds in folds.items()}


def corrected_t(differences: Sequence[float] | Floats, test_over_train: float, confidence: float = CONFIDENCE) -> Difference:
    """The corrected resampled t test of Nadeau and Bengio (2003) on paired differences, one per fold.

    se = sqrt((1/k + n_test/n_train) var), k - 1 degrees of freedom. `test_over_train` 0 gives the naive paired t test,
    whose folds are wrongly taken as independent. Without spread (or with one fold) nothing can be tested: p is nan.
    """
    values = np.asarray(differences, dtype=float)
    mean, error = _corrected_error(values, test_over_train)
    if not error > 0:
        p = 1.0 if len(values) > 1 and not values.any() else math.nan
        return Difference(mean, math.nan, math.nan, p, len(values))
    freedom = len(values) - 1
    margin = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return Difference(mean, mean - margin, mean + margin, p, len(values))


def rope(differences: Sequence[float] | Floats, test_over_train: float, half_width: float = 1.0) -> Rope:
    """Bayesian correlated t test (Benavoli et al. 2017): the same t distribution, read as a posterior of the difference."""
    values = np.asarray(differences, dtype=float)
    mean, error = _corrected_error(values, test_over_train)
    if not error > 0:
        return Rope(math.nan, math.nan, math.nan)
    below, up_to = stats.t.cdf([-half_width, half_width], len(values) - 1, loc=mean, scale=error)
    return Rope(float(below), float(up_to - below), float(1 - up_to))


def _corrected_error(values: Floats, test_over_train: float) -> tuple[float, float]:
    """Mean and corrected standard error; the error is nan below two folds and 0 without spread beyond rounding."""
    if len(values) < 2:
        return (float(values[0]) if len(values) else math.nan), math.nan
    variance = float(np.var(values, ddof=1))
    if math.sqrt(variance) <= 1e-12 * float(np.abs(values).max()):
        variance = 0.0
    return float(values.mean()), math.sqrt((1 / len(values) + test_over_train) * variance)


def cluster_bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    groups: Sequence[str] | NDArray[Any],
    generator: np.random.Generator,
    resamples: int = 2000,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Percentile interval of `statistic(indices of samples)` when whole groups (actors, sessions, games) are drawn again.

    Clips of one person are not independent, so clips are never drawn one by one. With fewer than FEWEST_GROUPS groups the
    bounds are nan: so few draws would pretend to a certainty that is not there.
    """
    names, membership = np.unique(np.asarray(groups), return_inverse=True)
    members = [np.flatnonzero(membership == group) for group in range(len(names))]
    estimate = statistic(np.arange(len(membership)))
    if len(names) < FEWEST_GROUPS:
        return Interval(estimate, math.nan, math.nan)
    draws = generator.integers(len(names), size=(resamples, len(names)))
    values = [statistic(np.concatenate([members[group] for group in draw])) for draw in draws]
    low, high = np.nanquantile(values, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(estimate, float(low), float(high))


def mcnemar(first_correct: Sequence[bool], second_correct: Sequence[bool]) -> Disagreement:
    """The exact McNemar test of two methods on one test list."""
    first, second = np.asarray(first_correct, dtype=bool), np.asarray(second_correct, dtype=bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differing = only_first + only_second
    p = float(stats.binomtest(only_first, differing).pvalue) if differing else 1.0
    return Disagreement(only_first, only_second, p)


def wilcoxon(differences: Sequence[float] | Floats) -> float:
    """Two-sided p of the signed-rank test; exact for few pairs. nan when every difference is zero."""
    values = np.asarray(differences, dtype=float)
    if not np.abs(values).max(initial=0) > 0:
        return math.nan
    if len(values) > EXACT_PAIRS:
        return float(stats.wilcoxon(values).pvalue)
    nonzero = values[values != 0]
    ranks = stats.rankdata(np.abs(nonzero))
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(ranks))))  # (2^n, n): all that chance could have given
    sums = np.abs(signs @ ranks)
    return float(np.mean(sums >= abs(np.sign(nonzero) @ ranks) - 1e-9))


def smallest_wilcoxon_p(pairs: int) -> float:
    """The least two-sided p that the signed-rank test can give: 0.0625 with 5 pairs, 0.03125 with 6."""
    return min(1.0, 2.0 ** (1 - pairs))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the given order; nan stays nan and does not count as a test."""
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    corrected = list(map(float, p_values))
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[index] = largest
    return corrected


def rank_methods(scores: Mapping[str, Sequence[float]]) -> Ranking:
    """Friedman's test over corpora, then Wilcoxon for each pair with Holm's correction. Larger scores are better.

    `scores` gives each method's value on every corpus, in the same order. Friedman's p is nan below three methods.
    """
    names = list(scores)
    table = np.array([scores[name] for name in names], dtype=float)  # (methods, corpora)
    ranks = stats.rankdata(-table, axis=0).mean(axis=1)
    can_test = len(names) > 2 and table.shape[1] > 1 and bool((table != table[0]).any())
    friedman_p = float(stats.friedmanchisquare(*table).pvalue) if can_test else math.nan
    pairs = list(itertools.combinations(names, 2))
    p_values = holm([wilcoxon(np.subtract(scores[first], scores[second])) for first, second in pairs])
    mean_ranks = dict(zip(names, map(float, ranks), strict=True))
    return Ranking(mean_ranks, friedman_p, dict(zip(pairs, p_values, strict=True)), smallest_wilcoxon_p(table.shape[1]))


def factorial_effects(
    factors: Sequence[str], levels: Sequence[Sequence[bool]], values: Floats, test_over_train: float
) -> list[Effect]:
    """Main effects and interactions of a full two-level design; `values` (variants, folds), `levels` (variants, factors).

    An effect is computed in each fold (mean where the product of the factors' signs is +1, minus the mean where it is -1)
    and then tested as a paired difference over the folds. Raises ValueError when the design is not a full factorial.
    """
    signs = np.where(np.asarray(levels, dtype=bool), 1.0, -1.0)  # (variants, factors)
    if len({tuple(row) for row in signs}) != len(signs) or len(signs) != 2 ** len(factors):
        raise ValueError(f"{len(signs)} variants are not a full two-level design of {len(factors)} factors")
    effects = []
    for order in range(1, len(factors) + 1):
        for chosen in itertools.combinations(range(len(factors)), order):
            contrast = signs[:, chosen].prod(axis=1) / (len(signs) / 2)
            difference = corrected_t(contrast @ values, test_over_train)
            effects.append(Effect(tuple(factors[index] for index in chosen), difference))
    return effects


def not_resolvable(folds: int, seeds: int) -> str:
    """What a table says instead of ranking where no difference can be shown."""
    return f"not resolvable at k={folds}, {seeds} seed{'' if seeds == 1 else 's'}"
