"""What can and cannot be concluded from a study, in sentences; every sentence follows from a test in reports.stats."""

from __future__ import annotations

import math

from reports import stats
from reports.analysis import Analysis, CorpusAnalysis, paper_differences
from reports.cells import Cell

ROPE_POINTS = 1.0
SURE = 0.95


def findings(analysis: Analysis) -> list[str]:
    """The sentences for a study's page."""
    lines = [line for corpus in analysis.corpora for line in _of_corpus(corpus)]
    if analysis.ranking:
        lines += _of_ranking(analysis.ranking, len(analysis.corpora))
    lines = lines or ["Nothing can be concluded: there is no complete cell."]
    if analysis.study.smoke:
        lines.append("All of this is at smoke size on generated clips: nothing follows for the method on real corpora.")
    return lines


def _of_corpus(corpus: CorpusAnalysis) -> list[str]:
    open_cells = [cell for cell in corpus.cells if not cell.complete]
    lines = [
        f"{corpus.title}: {cell.variant} is incomplete ({cell.progress}) and takes part in no comparison." for cell in open_cells
    ]
    if not corpus.metrics:
        return [*lines, f"{corpus.title}: no metric can be computed."]
    return [*lines, *_of_effects(corpus), *_of_comparisons(corpus), *_of_paper(corpus)]


def _of_effects(corpus: CorpusAnalysis) -> list[str]:
    lines = []
    for effect in corpus.effects:
        name, difference = " x ".join(effect.factors), effect.difference
        kind = "effect" if len(effect.factors) == 1 else "interaction"
        if difference.resolved:
            lines.append(f"{corpus.title}: the {kind} of {name} on {corpus.headline} is {interval_text(difference)} points.")
        elif len(effect.factors) == 1:
            verdict = stats.not_resolvable(corpus.folds, corpus.seeds)
            lines.append(
                f"{corpus.title}: the effect of {name} on {corpus.headline}, {interval_text(difference)} points, is {verdict}."
            )
    if corpus.effects and not any(len(effect.factors) > 1 and effect.difference.resolved for effect in corpus.effects):
        lines.append(f"{corpus.title}: no interaction between the modules is shown.")
    return lines


def _of_comparisons(corpus: CorpusAnalysis) -> list[str]:
    shown = {name: comparison for name, comparison in corpus.comparisons.items() if comparison.significant}
    lines = [
        f"{corpus.title}: {name} differs from the baseline by {interval_text(comparison.difference)} points {corpus.headline} "
        f"(p = {comparison.holm_p:.3g}, Holm over {len(corpus.comparisons)} rows)."
        for name, comparison in shown.items()
    ]
    if corpus.comparisons and not shown:
        lines.append(f"{corpus.title}: which row is best is {stats.not_resolvable(corpus.folds, corpus.seeds)}.")
    smallest = stats.smallest_wilcoxon_p(corpus.folds)
    if corpus.comparisons and smallest > stats.ALPHA:
        lines.append(
            f"{corpus.title}: with {corpus.folds} folds a signed-rank test cannot give p below {smallest:g}; it is not used."
        )
    return lines


def _of_paper(corpus: CorpusAnalysis) -> list[str]:
    return [
        _against_paper(corpus, cell, metric)
        for cell in corpus.cells
        for metric in corpus.metrics
        if cell.complete and (cell.variant, metric) in corpus.paper
    ]


def _against_paper(corpus: CorpusAnalysis, cell: Cell, metric: str) -> str:
    value = corpus.paper[cell.variant, metric]
    posterior = stats.rope(paper_differences(corpus, cell.variant, metric), cell.test_over_train, ROPE_POINTS)
    start = (
        f"{corpus.title}: {cell.variant} reaches {metric} {cell.pooled[metric]:.2f}, published {value.value:.2f} ({value.status})"
    )
    if math.isnan(posterior.inside):
        return f"{start}; equivalence cannot be judged from one fold."
    verdict = "is shown" if posterior.inside > SURE else "is not shown"
    way = "fold by fold" if value.folds else "against the published total"
    return f"{start}; equivalence within {ROPE_POINTS:g} point {verdict} (probability {posterior.inside:.2f}, {way})."


def _of_ranking(ranking: stats.Ranking, corpora: int) -> list[str]:
    order = sorted(ranking.mean_ranks, key=lambda name: ranking.mean_ranks[name])
    ranks = ", ".join(f"{name} {ranking.mean_ranks[name]:.2f}" for name in order)
    lines = [f"Mean ranks over {corpora} corpora: {ranks}; Friedman p = {ranking.friedman_p:.3g}."]
    if not ranking.friedman_p < stats.ALPHA:
        return [*lines, "Over the corpora no difference between the methods is shown."]
    pairs = [f"{first} and {second} (p = {p:.3g})" for (first, second), p in ranking.pairs.items() if p < stats.ALPHA]
    found = (
        f"These pairs differ (Wilcoxon, Holm): {'; '.join(pairs)}."
        if pairs
        else "No single pair differs after Holm's correction."
    )
    return [*lines, found]


def interval_text(difference: stats.Difference) -> str:
    """`+1.19 [-1.48, +3.86]`."""
    if math.isnan(difference.low):
        return f"{difference.mean:+.2f}"
    return f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
