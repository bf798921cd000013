"""Cells: what a variant reaches on a corpus, over its folds and seeds, and how it compares with the others.

The headline number is the metric computed on all folds' test samples together (the paper's way). With several seeds it is
computed per seed, then averaged; values per fold are averaged over seeds first. A cell with a run missing has no pooled number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hicmae.errors import HicmaeError
from hicmae.metrics import HIGHER_IS_BETTER, METRICS
from reports import stats
from reports.corpora import words
from reports.predictions import Predictions, pooled
from reports.query import Study, StudyRun
from reports.resampling import cluster_interval

RESAMPLES = 2000


@dataclass(frozen=True)
class Cell:
    """One variant on one corpus; `wanted` are all its runs, `used` those that count."""

    variant: str
    corpus: str
    wanted: tuple[StudyRun, ...]
    used: tuple[StudyRun, ...]
    metrics: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return bool(self.wanted) and len(self.used) == len(self.wanted)

    @cached_property
    def before(self) -> tuple[str, ...]:
        """The pre-trainings that its runs start from."""
        return tuple(dict.fromkeys(run_id for run in self.wanted for run_id in run.depends_on))

    @property
    def progress(self) -> str:
        """`3/5`: runs that count of runs wanted."""
        return f"{len(self.used)}/{len(self.wanted)}"

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({run.seed for run in self.wanted}))

    @property
    def fold_count(self) -> int:
        return len({run.fold for run in self.wanted})

    @cached_property
    def pooled_predictions(self) -> dict[int, Predictions]:
        """All folds' test samples by seed, for seeds whose folds are all there."""
        by_seed: dict[int, list[Predictions]] = {}
        for run in self.used:
            if run.predictions:
                by_seed.setdefault(run.seed, []).append(run.predictions)
        return {seed: pooled(parts) for seed, parts in by_seed.items() if len(parts) == self.fold_count}

    @cached_property
    def pooled(self) -> dict[str, float]:
        """Each metric over all test samples, averaged over seeds; empty while the cell is incomplete."""
        if not self.complete:
            return {}
        values = [predictions.metrics(self.metrics) for predictions in self.pooled_predictions.values()]
        return {metric: float(np.mean([value[metric] for value in values])) for metric in self.metrics}

    @cached_property
    def folds(self) -> dict[str, dict[int, float]]:
        """metric -> fold -> value averaged over that fold's seeds; only folds whose seeds are all there."""
        by_run = {(run.fold or 0, run.seed): run.predictions.metrics(self.metrics) for run in self.used if run.predictions}
        whole = {fold for fold, _ in by_run if all((fold, seed) in by_run for seed in self.seeds)}
        return {
            metric: stats.average_seeds({key: values[metric] for key, values in by_run.items() if key[0] in whole})
            for metric in self.metrics
        }

    @cached_property
    def ordered(self) -> dict[int, Predictions]:
        """`pooled_predictions`, each sorted by sample."""
        return {seed: _ordered(predictions) for seed, predictions in self.pooled_predictions.items()}

    @property
    def inner(self) -> bool:
        """Whether the runs were judged on a validation part and never saw the test part: trials of a search."""
        return any(run.config.get("evaluation", {}).get("selection") == "inner" for run in self.used)

    @property
    def samples(self) -> int:
        """Test samples of one seed."""
        return max((len(predictions) for predictions in self.pooled_predictions.values()), default=0)

    @property
    def test_over_train(self) -> float:
        """Mean size of the test part over mean size of the training part; nan where a run does not say."""
        sizes = [(run.result.get("n_test"), run.result.get("n_train")) for run in self.used]
        known = [(test, train) for test, train in sizes if test and train]
        return float(np.sum([test for test, _ in known]) / np.sum([train for _, train in known])) if known else float("nan")

    def total(self, key: str) -> float:
        """A sum over the runs that count, such as gpu_hours."""
        return float(sum(run.result.get(key) or 0.0 for run in self.used))


@dataclass(frozen=True)
class Comparison:
    """A cell against the baseline on one metric: over folds, and on the pooled samples.

    `p` is that of the corrected resampled t test over folds; on one test list, of the exact McNemar test.
    """

    metric: str
    difference: stats.Difference
    pooled: stats.Interval
    wilcoxon_p: float
    disagreement: stats.Disagreement | None
    holm_p: float = float("nan")

    @property
    def p(self) -> float:
        if self.difference.folds > 1 or self.disagreement is None:
            return self.difference.p
        return self.disagreement.p

    @property
    def significant(self) -> bool:
        return self.holm_p < stats.ALPHA


def metrics_of(study: Study, corpus: str) -> tuple[str, ...]:
    """The metrics that the study declares, else the corpus' own, else those recorded by its runs."""
    declared = tuple(study.table.get("metrics") or ())
    if study.search:  # one that minimises the loss is shown with the corpus' metrics
        declared = tuple(metric for metric in declared if metric.partition(" ")[0] in METRICS)
    declared = declared or words(corpus).metrics
    if declared:
        return declared
    recorded = [
        run.result.get("metrics", {}).get(study.selection, {}) for run in study.runs if run.corpus == corpus and run.predictions
    ]
    return tuple(dict.fromkeys(name for metrics in recorded for name in metrics))


def cells_of(study: Study, corpus: str) -> tuple[list[Cell], list[str]]:
    """A cell for every variant in the study's order, and a line for every metric that its runs cannot give."""
    example = next((run.predictions for run in study.runs if run.corpus == corpus and run.predictions), None)
    wanted = metrics_of(study, corpus)
    reasons = {metric: _why_not(metric, example, corpus) for metric in wanted}
    metrics = tuple(metric for metric in wanted if not reasons[metric])
    return [_cell(study, variant.name, corpus, metrics) for variant in study.variants], [
        line for line in reasons.values() if line
    ]


def _why_not(metric: str, example: Predictions | None, corpus: str) -> str:
    """Why predictions like the example cannot give a metric; empty when they can."""
    try:
        known = example is None or metric in example.metrics([metric])
        return "" if known else f"{corpus}: nobody logged a metric {metric!r}"
    except HicmaeError as error:
        return f"{corpus}: metric {metric!r} cannot be computed from the predictions ({error})"


def _cell(study: Study, variant: str, corpus: str, metrics: tuple[str, ...]) -> Cell:
    wanted = study.cell_runs(variant, corpus)
    return Cell(variant, corpus, tuple(wanted), tuple(run for run in wanted if run.predictions), metrics)


def compare(
    cells: Sequence[Cell], baseline: Cell, metric: str, generator: np.random.Generator, resamples: int = RESAMPLES
) -> dict[str, Comparison]:
    """Each complete cell against a complete baseline on the same samples, by variant; Holm's correction over the rows."""
    if not baseline.complete:
        return {}
    others = [cell for cell in cells if cell.complete and cell is not baseline and same_samples(cell, baseline)]
    found = [_comparison(cell, baseline, metric, generator, resamples) for cell in others]
    corrected = stats.holm([comparison.p for comparison in found])
    return {
        cell.variant: Comparison(**{**vars(comparison), "holm_p": p})
        for cell, comparison, p in zip(others, found, corrected, strict=True)
    }


def _comparison(cell: Cell, baseline: Cell, metric: str, generator: np.random.Generator, resamples: int) -> Comparison:
    differences = fold_differences(cell.folds[metric], baseline.folds[metric])
    seeds = sorted(set(cell.ordered) & set(baseline.ordered))
    parts = [
        (part, weight / len(seeds)) for seed in seeds for part, weight in ((cell.ordered[seed], 1), (baseline.ordered[seed], -1))
    ]
    estimate = sum(weight * part.metrics([metric])[metric] for part, weight in parts)
    interval = cluster_interval(estimate, parts, metric, generator, resamples)
    difference = stats.corrected_t(differences, cell.test_over_train)
    return Comparison(metric, difference, interval, stats.wilcoxon(differences), disagreement_of(cell, baseline))


def disagreement_of(first: Cell, second: Cell) -> stats.Disagreement | None:
    """McNemar's test on the samples that both predict (first seed of both); None for a regression."""
    seed = min(set(first.ordered) & set(second.ordered))
    one, other = first.ordered[seed], second.ordered[seed]
    return stats.mcnemar(one.answers == one.truth, other.answers == other.truth) if one.is_classification else None


def best_is_resolved(cells: Sequence[Cell], metric: str) -> bool:
    """Whether the best of complete cells differs from any other one; corrected for all pairs: data chose the best."""
    best = best_cell(cells, metric)
    others = [cell for cell in cells if cell is not best and same_samples(cell, best)]
    pairs = len(cells) * (len(cells) - 1) / 2
    return any(pairs * _pair_p(cell, best, metric) < stats.ALPHA for cell in others)


def best_cell(cells: Sequence[Cell], metric: str) -> Cell:
    """The complete cell with the best pooled value."""
    sign = 1 if HIGHER_IS_BETTER.get(metric.partition(" ")[0], True) else -1
    return max(cells, key=lambda cell: sign * cell.pooled[metric])


def _pair_p(first: Cell, second: Cell, metric: str) -> float:
    differences = fold_differences(first.folds[metric], second.folds[metric])
    if len(differences) > 1:
        return stats.corrected_t(differences, first.test_over_train).p
    disagreement = disagreement_of(first, second)
    return float("nan") if disagreement is None else disagreement.p


def fold_differences(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """First minus second in every fold that both have, by fold."""
    return [first[fold] - second[fold] for fold in sorted(set(first) & set(second))]


def interval_of(cell: Cell, metric: str, generator: np.random.Generator, resamples: int = RESAMPLES) -> stats.Interval:
    """The pooled metric with its cluster-bootstrap interval, for a complete cell."""
    parts = [(cell.ordered[seed], 1 / len(cell.ordered)) for seed in sorted(cell.ordered)]
    return cluster_interval(cell.pooled[metric], parts, metric, generator, resamples)


def same_samples(first: Cell, second: Cell) -> bool:
    """Whether both predict the same samples with the same truth, so that they can be compared sample by sample."""
    one, other = _any_seed(first), _any_seed(second)
    return bool(np.array_equal(one.sample_ids, other.sample_ids) and np.array_equal(one.truth, other.truth))


def _any_seed(cell: Cell) -> Predictions:
    return cell.ordered[min(cell.ordered)]


def _ordered(predictions: Predictions) -> Predictions:
    return predictions.take(np.argsort(predictions.sample_ids))


def effects_of(study: Study, cells: Sequence[Cell], metric: str) -> list[stats.Effect]:
    """Main effects and interactions when the variants are a full two-level design of their columns; else none."""
    factors = tuple(study.table.get("columns") or ())
    by_name = {variant.name: variant for variant in study.variants}
    levels = [[by_name[cell.variant].columns.get(factor) for factor in factors] for cell in cells]
    plain = all(isinstance(level, bool) for row in levels for level in row)
    distinct = len({tuple(row) for row in levels})
    if (
        not factors
        or not plain
        or len(cells) != 2 ** len(factors)
        or distinct != len(cells)
        or not all(c.complete for c in cells)
    ):
        return []
    folds = sorted(set.intersection(*(set(cell.folds[metric]) for cell in cells)))
    values = np.array([[cell.folds[metric][fold] for fold in folds] for cell in cells])  # (variants, folds)
    return stats.factorial_effects(factors, [[bool(level) for level in row] for row in levels], values, cells[0].test_over_train)
