"""What can and cannot be concluded from a study, in sentences; every sentence follows from a test in reports.stats."""

from __future__ import annotations

import math

from reports import stats, trials
from reports.analysis import ROPE_POINTS, Analysis, CorpusAnalysis, paper_differences
from reports.cells import Cell, Comparison, best_cell
from reports.corpora import words

SURE = 0.95
NAMED_ROWS = 5


def findings(analysis: Analysis) -> list[str]:
    """The sentences for a study's page."""
    lines = [line for corpus in analysis.corpora for line in _of_corpus(analysis, corpus)]
    lines += _of_signed_ranks(analysis)
    if analysis.ranking:
        lines += _of_ranking(analysis.ranking, len(analysis.corpora))
    lines = lines or ["Nothing can be concluded: there is no complete cell."]
    if analysis.study.smoke:
        lines.append("All of this is at smoke size on generated clips: nothing follows for the method on real corpora.")
    return lines


def _of_corpus(analysis: Analysis, corpus: CorpusAnalysis) -> list[str]:
    lines = _of_incomplete(analysis, corpus)
    if not corpus.metrics:
        return [*lines, f"{corpus.title}: no metric can be computed."]
    if analysis.study.search:
        return [*lines, *_of_search(analysis, corpus)]
    return [*lines, *_of_level(analysis, corpus), *_of_effects(corpus), *_of_comparisons(corpus), *_of_paper(corpus)]


def _of_incomplete(analysis: Analysis, corpus: CorpusAnalysis) -> list[str]:
    cells = [cell for cell in corpus.cells if not cell.complete and not trials.is_pruned(analysis.study, cell.variant)]
    if len(cells) > NAMED_ROWS:
        names = ", ".join(f"{cell.variant} ({cell.progress})" for cell in cells[:NAMED_ROWS])
        more = len(cells) - NAMED_ROWS
        return [f"{corpus.title}: {len(cells)} rows are incomplete and take part in no comparison: {names} and {more} more."]
    return [f"{corpus.title}: {cell.variant} is incomplete ({cell.progress}) and takes part in no comparison." for cell in cells]


def _of_search(analysis: Analysis, corpus: CorpusAnalysis) -> list[str]:
    study = analysis.study
    values = {name: trial.get("value") for name, trial in trials.trials(study).items()}
    best = next((cell for cell in corpus.cells if cell.complete and values.get(cell.variant) is not None), None)
    if best is None:
        return [f"{corpus.title}: no trial has ended with a value yet."]
    value = values[best.variant]
    chosen = f"{corpus.title}: {best.variant} was chosen ({study.search.get('objective', 'objective')} {value:.2f})"
    return [f"{chosen}; its value is the largest of many and says too much. What it is worth, the test part of the fold says."]


def _of_level(analysis: Analysis, corpus: CorpusAnalysis) -> list[str]:
    """The pooled headline with its interval: of the baseline, else of the best row where there is one."""
    complete = {cell.variant: cell for cell in corpus.cells if cell.complete}
    name = str(analysis.study.table.get("baseline") or "")
    if name not in complete:
        if not complete or corpus.verdict:
            return []
        name = best_cell(list(complete.values()), corpus.headline).variant
    interval = corpus.intervals[name]
    if math.isnan(interval.low):
        return []
    text = f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
    unit = words(corpus.corpus).group_word
    return [
        f"{corpus.title}: {name} reaches {corpus.headline} {text} (95 % interval; bootstrap that draws each {unit} as a whole)."
    ]


def _of_effects(corpus: CorpusAnalysis) -> list[str]:
    lines: list[str] = []
    unresolved: list[str] = []
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
        else:
            unresolved.append(f"{name} {interval_text(difference)}")
    if unresolved:
        all_of_them = len(unresolved) == sum(len(effect.factors) > 1 for effect in corpus.effects)
        start = "no interaction between the modules is shown" if all_of_them else "no other interaction is shown"
        verdict = stats.not_resolvable(corpus.folds, corpus.seeds)
        lines.append(f"{corpus.title}: {start} ({verdict}); in points {corpus.headline}: {', '.join(unresolved)}.")
    return lines


def _of_comparisons(corpus: CorpusAnalysis) -> list[str]:
    shown = {name: comparison for name, comparison in corpus.comparisons.items() if comparison.significant}
    rows = len(corpus.comparisons)
    lines = [f"{corpus.title}: {name} {_difference(corpus, shown[name], rows)}." for name in shown]
    if corpus.verdict:
        lines.append(f"{corpus.title}: which row is best is {corpus.verdict}.")
        if rows and corpus.folds == 1:
            lines += [
                f"{corpus.title}: {name} and the baseline: {_mcnemar(c)}."
                for name, c in list(corpus.comparisons.items())[:NAMED_ROWS]
            ]
    return lines


def _of_signed_ranks(analysis: Analysis) -> list[str]:
    """Said once for the folds that are too few for it."""
    counts = {corpus.folds for corpus in analysis.corpora if corpus.comparisons} - {1}
    few = [folds for folds in sorted(counts) if stats.smallest_wilcoxon_p(folds) > stats.ALPHA]
    return [
        f"With {folds} folds a signed-rank test cannot give p below {stats.smallest_wilcoxon_p(folds):g}; it is not used."
        for folds in few
    ]


def _difference(corpus: CorpusAnalysis, comparison: Comparison, rows: int) -> str:
    """How a row differs from the baseline, over folds or on the one test list."""
    pooled = comparison.pooled
    whole = f"{pooled.estimate:+.2f}"
    whole += "" if math.isnan(pooled.low) else f" [{pooled.low:+.2f}, {pooled.high:+.2f}]"
    holm = f"p = {comparison.holm_p:.3g}, Holm over {rows} rows"
    if comparison.difference.folds > 1:
        over_folds = f"differs from the baseline by {interval_text(comparison.difference)} points {corpus.headline} over folds"
        return f"{over_folds} ({holm}); on the pooled samples by {whole}"
    return f"differs from the baseline by {whole} points {corpus.headline} on one test list ({_mcnemar(comparison)}; {holm})"


def _mcnemar(comparison: Comparison) -> str:
    found = comparison.disagreement
    if found is None:
        return "a regression on one test list has no test here"
    counts = f"{found.only_first} samples right in it alone, {found.only_second} in the baseline alone"
    return f"{counts}, exact McNemar p = {found.p:.3g}"


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
    if not ranking.friedman_p < stats.ALPHA:
        return [
            f"Over {corpora} corpora no difference between the {len(ranking.mean_ranks)} methods is shown "
            f"(Friedman p = {ranking.friedman_p:.3g}): they are not ranked."
        ]
    order = sorted(ranking.mean_ranks, key=lambda name: ranking.mean_ranks[name])
    ranks = ", ".join(f"{name} {ranking.mean_ranks[name]:.2f}" for name in order)
    pairs = [f"{first} and {second} (p = {p:.3g})" for (first, second), p in ranking.pairs.items() if p < stats.ALPHA]
    found = (
        f"These pairs differ (Wilcoxon, Holm): {'; '.join(pairs)}."
        if pairs
        else "No single pair differs after Holm's correction."
    )
    return [f"Mean ranks over {corpora} corpora: {ranks}; Friedman p = {ranking.friedman_p:.3g}.", found]


def interval_text(difference: stats.Difference) -> str:
    """`+1.19 [-1.48, +3.86]`."""
    if math.isnan(difference.low):
        return f"{difference.mean:+.2f}"
    return f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
